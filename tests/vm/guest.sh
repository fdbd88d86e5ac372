#!/bin/sh
# In a guest, as root: guest.sh PYTHON LIBRARY SITE...
# For each site, whose name is a mechanism, a daemon and the known work on ext4 and xfs.
set -eu
python=$1 library=$2
shift 2
here=$(dirname "$0")
for module in loop xfs ext4; do modprobe $module 2>/dev/null || true; done
for fs in ext4 xfs; do
	truncate -s 320M /run/$fs.img
	mkdir /mnt/$fs
	mkfs.$fs -q "$([ $fs = ext4 ] && echo -b4096 || echo -f)" /run/$fs.img
	mount -o loop /run/$fs.img /mnt/$fs
	chmod 777 /mnt/$fs
done
sync

# as the run's user: joins the run by itself, as datacrumbs_wrap does for programs
work() {
	setpriv --reuid=65534 --regid=65534 --clear-groups env "LD_PRELOAD=$library" \
		DATACRUMBS_RUN_ID=run ./work "$@"
}

for site; do
	mechanism=$(basename "$site")
	$python -P "$here/daemon.py" "$mechanism" "$site/probes.json.gz" run \
		--config "$site/system.yaml" &
	daemon=$!
	until [ -e "$site/run/datacrumbs-run.ready" ]; do
		kill -0 $daemon || exit 1
		sleep 0.1
	done
	for fs in ext4 xfs; do work "/mnt/$fs/$mechanism" sync; done
	work "/mnt/ext4/$mechanism-later"
	sync # by root: a kernel thread writes what the run left dirty
	kill $daemon
	wait $daemon
done
