#!/bin/sh
# In a guest, as root: guest.sh PYTHON LIBRARY "THREADS CALLS" "THREADS CALLS" SITE...
# For each site, whose name is a mechanism, a daemon and the known work on ext4, xfs and NFS, with
# the first of the numbers for ./busy; for the site "explain", the work that explained.py has the
# probes for; for the site "crowd-site", ./crowd with the other numbers, which leaves there what it
# says.
set -eu
python=$1 library=$2 busy=$3 crowd=$4
shift 4
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

# This machine is its own NFS server. Nothing in user space answers the server's questions (whose
# address, which directory, which file handle): the answers are there before it asks.
serve_nfs() {
	mkdir -m 777 /mnt/ext4/served
	mount -t nfsd nfsd /proc/fs/nfsd
	never=2147483647 flags=$((0x2 | 0x400 | 0x2000)) # any port, no subtree check, a number
	echo "nfsd 127.0.0.1 $never self" >/proc/net/rpc/auth.unix.ip/channel
	echo "self /mnt/ext4/served $never $flags -2 -2 0" >/proc/net/rpc/nfsd.export/channel
	printf '%s\n' "self 1 \\x00000000 $never /mnt/ext4/served" >/proc/net/rpc/nfsd.fh/channel
	echo "-3 +4.2" >/proc/fs/nfsd/versions
	echo 10 >/proc/fs/nfsd/nfsv4gracetime # the least; over before the first file is opened
	echo "tcp 2049" >/proc/fs/nfsd/portlist
	echo 2 >/proc/fs/nfsd/threads
}

# Requests smaller than the file, so that there are several and writes need a commit.
mount_nfs() {
	mkdir /mnt/nfs
	mount -i -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,rsize=16384,wsize=16384 \
		127.0.0.1:/ /mnt/nfs
}

modprobe -a nfsd nfsv4
local=/sys/module/nfs/parameters/localio_enabled # past the network, as no other machine could
[ ! -e $local ] || echo N >$local
serve_nfs
mount_nfs
# what the example finds where there is NFS
"$(dirname "$python")/datacrumbs_probe_configurator" nfs.yaml --dry-run --format json >nfs.json &
configurator=$!

# as the run's user: joins the run by itself, as datacrumbs_wrap does for programs
joined() {
	$first setpriv --reuid=65534 --regid=65534 --clear-groups env "LD_PRELOAD=$library" \
		DATACRUMBS_RUN_ID=run "$@"
}
first=

# start DAEMON...: it is tracing for the site
start() {
	"$@" "$site/probes.json.gz" run --config "$site/system.yaml" &
	daemon=$!
	until [ -e "$site/run/datacrumbs-run.ready" ]; do
		kill -0 $daemon || exit 1
		sleep 0.1
	done
}

stop() {
	kill $daemon
	wait $daemon
}

known_work() {
	for fs in ext4 xfs; do joined ./work "/mnt/$fs/$1" sync; done
	joined ./work "/mnt/ext4/$1-later"
	joined env -C /mnt/ext4 "$PWD/io_uring" >/dev/null
	sync # by root: a kernel thread writes what the run left dirty
	joined ./busy $busy
	joined ./work "/mnt/nfs/$1" sync
	joined ./work "/mnt/nfs/$1-later" held
	joined ./work "/mnt/nfs/$1" read
}

# The first touch of a guest's page takes the host a page, and the guest time: have free ones that
# were touched.
touch_memory() {
	dd if=/dev/zero of=/dev/shm/touched bs=1M count=256 status=none
	rm /dev/shm/touched
}

# half FS STEP ROUND: what is written before is in the page cache, clean
half() {
	file=/mnt/$1/half-$3
	./explained prepare $file "$2"
	chmod 666 $file
	sync
	joined ./explained half $file
	rm $file
}

explained_work() {
	first="chrt -f 10" # of all in the guest, so that calls take what they take
	for round in 1 2 3; do # the host may be busy: the quietest counts
		half ext4 0 $round
		half xfs 2 $round # has large folios: pages and space come one by one
	done
	for fs in ext4 xfs; do
		for kind in forced direct; do joined ./explained $kind /mnt/$fs/$kind; done
	done
	joined ./explained_hdf5 plain /mnt/ext4/plain.h5 64
	joined ./explained_hdf5 converted /mnt/ext4/converted.h5 16
	first=
}

for site; do
	name=$(basename "$site")
	if [ "$name" = explain ]; then
		touch_memory
		start "$(dirname "$python")/datacrumbs"
		explained_work
	elif [ "$name" = crowd-site ]; then
		start "$(dirname "$python")/datacrumbs"
		joined ./crowd $crowd >"$site/made"
	else
		start $python -P "$here/daemon.py" "$name"
		known_work "$name"
	fi
	stop
done
wait $configurator
