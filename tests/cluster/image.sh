#!/bin/sh
# image.sh SUITE DIRECTORY: the root file system that cluster nodes of a Debian suite start from.
#
# Complete or absent: made next to DIRECTORY, then renamed. From the mirror that this system
# itself uses. Needs root and debootstrap.
set -eu
suite=$1 final=$2
new=$final.new.$$
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)

mounted=
cleanup() {
	[ -z "$mounted" ] || umount "$new/proc"
	rm -rf --one-file-system "$new"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

mkdir -p "$(dirname "$final")"
debootstrap --variant=minbase "$suite" "$new" "$mirror" >"$new.log" 2>&1 || {
	tail -n 20 "$new.log" >&2
	exit 1
}
rm -f "$new.log"
cp /etc/resolv.conf "$new/etc/"
printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
chmod 755 "$new/usr/sbin/policy-rc.d"
mount -t proc proc "$new/proc"
mounted=1
# libffi8: for Python's ctypes; libslurm-dev: Slurm's header of this very version, for the plugin
chroot "$new" sh -ec '
	export DEBIAN_FRONTEND=noninteractive
	apt-get -o Acquire::Check-Valid-Until=false update -q
	apt-get install -q -y --no-install-recommends systemd systemd-sysv dbus munge slurm-wlm \
		slurm-wlm-basic-plugins libslurm-dev iproute2 procps openssh-server libbpf1 libffi8 \
		libexpat1 zlib1g libssl3 libsqlite3-0 libbz2-1.0 liblzma5
	apt-get clean
	rm -rf /var/lib/apt/lists/*
	useradd -u 2001 -d /shared/home/alice -s /bin/bash alice
	useradd -u 2002 -d /shared/home/bob -s /bin/bash bob' >"$new/build.log" 2>&1 || {
	tail -n 20 "$new/build.log" >&2
	exit 1
}
umount "$new/proc"
mounted=

units=$new/etc/systemd/system
rm -f "$units"/multi-user.target.wants/slurm*.service "$units"/multi-user.target.wants/ssh.service
# what has no place in a namespace of somebody else's machine, and what only costs time
for unit in systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
	systemd-udevd-varlink.socket systemd-udev-trigger.service systemd-sysctl.service \
	systemd-modules-load.service systemd-remount-fs.service systemd-logind.service getty.target \
	systemd-networkd-wait-online.service systemd-timesyncd.service systemd-random-seed.service \
	systemd-binfmt.service systemd-firstboot.service systemd-pstore.service dev-hugepages.mount \
	sys-kernel-debug.mount slurmrestd.service apt-daily.timer apt-daily-upgrade.timer \
	fstrim.timer dpkg-db-backup.timer e2scrub_all.timer man-db.timer; do
	ln -sf /dev/null "$units/$unit"
done
mkdir -p "$new/shared" "$new/etc/slurm" "$new/var/log/slurm" "$new/var/spool/slurmctld"
chroot "$new" chown slurm: /var/log/slurm /var/spool/slurmctld
trap - EXIT
mv -T "$new" "$final"
