#!/bin/sh
# A job of Flux that is traced on both its nodes, all that runs in it:
#
#   datacrumbs_probe_configurator io.yaml ~/probes.json.gz      # once, on the login node
#   flux batch flux_job.sh
#   datacrumbs_report ~/datacrumbs/$(flux job id --to=f58plain $(flux job last))
#
# flux: --nodes=2
# flux: --time-limit=10m
# flux: --datacrumbs-enable
# flux: --datacrumbs-probe-file=probes.json.gz

# each task writes 64 MiB where it was started from, and reads them again
flux run --nodes=2 --ntasks=4 sh -c '
	dd if=/dev/zero of="part.$FLUX_TASK_RANK" bs=1M count=64 status=none
	cat "part.$FLUX_TASK_RANK" >/dev/null
	rm "part.$FLUX_TASK_RANK"
'
