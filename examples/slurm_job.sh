#!/bin/sh
# A traced batch job of Slurm's. Submit it with one of
#
#   sbatch --datacrumbs-probe-file probes.json.gz slurm_job.sh        (Slurm has the plugin)
#   datacrumbs_sbatch --datacrumbs-probe-file probes.json.gz slurm_job.sh
#
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --job-name=traced

# 23 writes of 4097 bytes on each node; the programs need not be changed
srun dd if=/dev/zero of=/dev/null bs=4097 count=23

# afterwards: datacrumbs_report ~/datacrumbs/<job id>
echo "run $SLURM_JOB_ID"
