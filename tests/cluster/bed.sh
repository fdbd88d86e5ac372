#!/bin/bash
# bed.sh up IMAGE COUNT | x NODE COMMAND... | down: a small Slurm cluster of namespaces
#
# Nodes n1, n2, ... are network, PID, mount, UTS, IPC and cgroup namespaces with a systemd of
# their own as PID 1, on an overlay over IMAGE (made by image.sh). n1 runs slurmctld as well.
#   BED_DIR    its state, and what goes into the nodes: conf/ is copied into each node's /,
#              shared/ is /shared on all of them ("the parallel file system"), bind lists files
#              and directories of this host that all see at the same path, read-only
#   BED_NAME   tells beds on one host apart: names network namespaces and cgroups
#   BED_UNITS  units that all nodes start, in the place of Slurm's
# Needs root, iproute2 and util-linux.
set -eu
T=${BED_DIR:?} NAME=${BED_NAME:?} SUBNET=10.77.0
UNI=$(findmnt -n -l -t cgroup2 -o TARGET | head -n 1)

node() { # NAME IP IMAGE unit...
	local N=$1 IP=$2 IMAGE=$3 W=$T/nodes/$1
	shift 3
	ip netns add "$NAME-$N"
	ip -n "$NAME-$N" link set lo up
	ip -n "$NAME-sw" link add "v-$N" type veth peer name eth0 netns "$NAME-$N"
	ip -n "$NAME-sw" link set "v-$N" master br0 up
	ip -n "$NAME-$N" addr add "$IP/24" dev eth0
	ip -n "$NAME-$N" link set eth0 up
	mkdir -p "$W/up/etc/systemd/system/multi-user.target.wants" "$W/work" "$W/root"
	cp -a "$T/conf/." "$W/up/"
	echo "$N" >"$W/up/etc/hostname"
	cp "$T/hosts" "$W/up/etc/hosts"
	for unit in "$@"; do
		ln -sf "/lib/systemd/system/$unit.service" "$W/up/etc/systemd/system/multi-user.target.wants/"
	done
	mkdir -p "$UNI/$NAME-$N"
	(
		echo "$BASHPID" >"$UNI/$NAME-$N/cgroup.procs"
		exec nsenter --net="/run/netns/$NAME-$N" unshare --fork --kill-child --pid --mount --uts --ipc \
			--cgroup --propagation private "$0" _init "$N" "$IMAGE" "$W"
	) </dev/null >"$W/boot.log" 2>&1 &
	local up=$! pid=
	for _ in $(seq 200); do
		read -r pid </proc/$up/task/$up/children 2>/dev/null || true
		[ -z "$pid" ] || break
		sleep 0.02
	done
	echo "${pid% }" >"$W/pid"
}

_init() { # PID 1 of the new namespaces: assemble the root, become systemd
	local N=$1 IMAGE=$2 W=$3 R=$3/root
	mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=$W/up,workdir=$W/work" "$R"
	mount -t proc proc "$R/proc"
	mount --bind "$R/proc/sys" "$R/proc/sys"
	mount -o remount,bind,ro "$R/proc/sys"
	mount -t sysfs sysfs "$R/sys"
	mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
	mount -t bpf bpf "$R/sys/fs/bpf"
	mount -t tracefs tracefs "$R/sys/kernel/tracing"
	mount -t tmpfs -o mode=755 tmpfs "$R/dev"
	for d in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
		# shellcheck disable=SC2086
		set -- $d
		mknod -m 666 "$R/dev/$1" c "$2" "$3"
	done
	mkdir "$R/dev/pts" "$R/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$R/dev/pts"
	ln -s pts/ptmx "$R/dev/ptmx"
	ln -s /proc/self/fd "$R/dev/fd"
	ln -s fd/0 "$R/dev/stdin"
	ln -s fd/1 "$R/dev/stdout"
	ln -s fd/2 "$R/dev/stderr"
	mount -t tmpfs -o mode=1777 tmpfs "$R/dev/shm"
	mount -t tmpfs -o mode=755 tmpfs "$R/run"
	mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
	mkdir -p "$R/shared"
	mount --bind "$T/shared" "$R/shared"
	while read -r path; do
		if [ -d "$path" ]; then mkdir -p "$R$path"; else
			mkdir -p "$R${path%/*}"
			touch "$R$path"
		fi
		mount --bind "$path" "$R$path"
		mount -o remount,bind,ro "$R$path"
	done <"$T/bind"
	hostname "$N"
	cd "$R"
	mkdir -p .old
	pivot_root . .old
	# shellcheck disable=SC2016
	exec env -i container=bed PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=linux /bin/sh -c \
		'umount -l /.old; rmdir /.old 2>/dev/null; exec /lib/systemd/systemd --system --show-status=no --log-target=journal-or-kmsg'
}

x() { # NODE COMMAND...
	local pid
	pid=$(cat "$T/nodes/$1/pid")
	shift
	exec nsenter -t "$pid" -m -u -i -n -p -C -r -w "$@"
}

up() { # IMAGE COUNT
	local i units
	{
		echo 127.0.0.1 localhost
		for i in $(seq "$2"); do echo "$SUBNET.$i n$i"; done
	} >"$T/hosts"
	ip netns add "$NAME-sw"
	ip -n "$NAME-sw" link set lo up
	ip -n "$NAME-sw" link add br0 type bridge
	ip -n "$NAME-sw" addr add "$SUBNET.254/24" dev br0
	ip -n "$NAME-sw" link set br0 up
	for i in $(seq "$2"); do
		units=slurmd
		[ "$i" != 1 ] || units="slurmctld slurmd"
		units=${BED_UNITS:-$units}
		# shellcheck disable=SC2086
		node "n$i" "$SUBNET.$i" "$1" $units
	done
	[ -z "${BED_UNITS-}" ] || return 0
	for _ in $(seq 300); do
		[ "$( (x n1 sinfo -h -t idle -o %D) 2>/dev/null)" != "$2" ] || return 0
		sleep 0.1
	done
	echo "not all nodes became idle" >&2
	cat "$T"/nodes/*/boot.log >&2
	(x n1 sinfo -N -l) >&2 || true
	return 1
}

down() { # whatever there is of it
	local W N pid
	for W in "$T"/nodes/*; do
		[ -d "$W" ] || continue
		N=${W##*/}
		pid=$(cat "$W/pid" 2>/dev/null || true)
		if [ -n "$pid" ]; then
			kill -RTMIN+4 "$pid" 2>/dev/null || true # systemd: power off
			for _ in $(seq 60); do
				[ -e "/proc/$pid" ] || break
				sleep 0.05
			done
			kill -9 "$pid" 2>/dev/null || true
			for _ in $(seq 60); do
				[ -e "/proc/$pid" ] || break
				sleep 0.05
			done
		fi
		ip netns del "$NAME-$N" 2>/dev/null || true
		for _ in $(seq 60); do # its last processes may still be on their way out
			[ -d "$UNI/$NAME-$N" ] || break
			find "$UNI/$NAME-$N" -depth -type d -exec rmdir {} \; 2>/dev/null || true
			sleep 0.05
		done
	done
	ip netns del "$NAME-sw" 2>/dev/null || true
	rm -rf --one-file-system "$T"
}

"$@"
