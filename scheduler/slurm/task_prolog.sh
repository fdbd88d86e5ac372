#!/bin/sh
# DataCrumbs: before each task of a job, as its user. Needed only where the SPANK plugin is not
# used; it does the same:
#   TaskProlog=/etc/slurm/task_prolog.sh    in slurm.conf
# What this prints, slurmstepd obeys: programs of a traced job join its run without being changed,
# and a user reads why a job that was to be traced is not.

# these two are what an installation changes
library=/opt/datacrumbs/lib/datacrumbs/libdatacrumbs_client.so
run_dir=/run/datacrumbs # as run_dir of system.yaml

ours=$run_dir/datacrumbs-${SLURM_JOB_ID-}
if [ -e "$ours.failed" ]; then # first: a run of this id may go on that is not the job's
	if [ -r "$ours.failed" ] && [ "${SLURM_LOCALID:-0}" = 0 ]; then
		read -r reason <"$ours.failed"
		printf 'print datacrumbs: not traced: %s\n' "$reason"
	fi
elif [ -e "$ours.ready" ]; then
	[ -r "$library" ] || exit 0
	echo "export DATACRUMBS_RUN_ID=$SLURM_JOB_ID"
	case :${LD_PRELOAD-}: in
	*":$library:"*) ;;
	*) printf 'export LD_PRELOAD=%s\n' "${LD_PRELOAD:+$LD_PRELOAD:}$library" ;;
	esac
	# gcc's AddressSanitizer insists on being the first library; ours hides nothing from it
	printf 'export ASAN_OPTIONS=%s\n' "${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0"
fi
exit 0
