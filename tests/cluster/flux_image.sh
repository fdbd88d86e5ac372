#!/bin/sh
# flux_image.sh BASE FLUX_SECURITY FLUX_CORE DIRECTORY: the root file system of nodes with Flux
#
# By hand, for test_flux_system.py: Flux is in no package registry. BASE is the image of Debian 12
# that image.sh makes, the next two are source trees of flux-security and flux-core (tried: 0.15.0,
# 0.88.0). On this host, which must be Debian 12 too, they need: autoconf automake libtool
# pkg-config gcc g++ libzmq3-dev libjansson-dev liblz4-dev libhwloc-dev libsqlite3-dev
# liblua5.1-0-dev lua5.1 lua-posix python3-dev python3-cffi python3-yaml python3-ply libarchive-dev
# libncurses-dev uuid-dev libsystemd-dev libsodium-dev libmunge-dev
set -eu
base=$1 security=$2 core=$3 image=$4
lib=/usr/lib/x86_64-linux-gnu
export PYTHON=/usr/bin/python3
: "${FLUX_VERSION:=0.88.0}" # of a tree without tags
export FLUX_VERSION

build() { # TREE OPTION...: make it and put it into the image
	(
		cd "$1" && shift
		[ -x configure ] || ./autogen.sh
		./configure --prefix=/usr --sysconfdir=/etc --localstatedir=/var --libdir=$lib "$@"
		make -s -j"$(nproc)" CPPFLAGS="-I$image/usr/include"
		make -s install DESTDIR="$image"
	)
}

cp -a "$base" "$image"
cp /etc/resolv.conf "$image/etc/"
mount -t proc proc "$image/proc"
trap 'umount "$image/proc"' EXIT
chroot "$image" sh -ec '
	export DEBIAN_FRONTEND=noninteractive
	apt-get -o Acquire::Check-Valid-Until=false update -q
	apt-get install -q -y --no-install-recommends munge libarchive13 libjansson4 liblz4-1 libhwloc15 \
		liblua5.1-0 lua5.1 lua-posix libsodium23 libzmq5 libsqlite3-0 libncursesw6 libpython3.11 \
		python3 python3-cffi python3-yaml python3-ply libpam-systemd dbus-user-session
	apt-get clean
	rm -f /etc/systemd/system/systemd-logind.service
	useradd -r -u 990 -d /var/lib/flux -m -s /bin/bash flux'

(unset FLUX_VERSION && build "$security")
pc=$image$lib/pkgconfig/flux-security.pc
sed -i.was "s|^prefix=.*|prefix=$image/usr|; s|^libdir=.*|libdir=$image$lib|" "$pc"
PKG_CONFIG_PATH=${pc%/*} build "$core" --runstatedir=/run --disable-docs --with-flux-security \
	--with-systemdsystemunitdir=/usr/lib/systemd/system
mv "$pc.was" "$pc"

# the nodes see this host's Python where theirs would be: Flux's own part of it stands beside
for part in flux _flux; do
	rm "$image$lib/flux/python3.11/$part"
	cp -a "$image/usr/lib/python3.11/site-packages/$part" "$image$lib/flux/python3.11/"
done
chmod 4755 "$image/usr/libexec/flux/flux-imp"
chroot "$image" ldconfig
