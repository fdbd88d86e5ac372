#!/bin/bash
# The whole way once, for real: key, signing service, probe file, daemon, a traced program, report.
# Needs root. Everything lies in $work and is removed at the end, the user too; should this script
# be killed, the next one removes what it left.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
user=datacrumbs-demo
run=demo-$$
work=/var/tmp/datacrumbs-demo # where the user can read, whatever root's TMPDIR is
service='' daemon=''

finish() {
	for pid in $daemon $service; do kill -TERM "$pid" 2>/dev/null && wait "$pid" || true; done
	remove_all
}
remove_all() {
	for _ in $(seq 100); do # the user's last process may be ending still
		id "$user" >/dev/null 2>&1 || break
		userdel "$user" 2>/dev/null || sleep 0.1
	done
	rm -rf "$work"
}

step() { printf '\n== %s\n' "$*"; }
# what is started here ends with this script, even if that is killed; nor does it hold the lock
as_root() { exec setpriv --pdeathsig TERM "$@" 9<&-; }
as_user() { setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all \
	--pdeathsig TERM env -C "$work/home" HOME="$work/home" USER="$user" "$@" 9<&-; }
wait_for() { # FILE PID
	for _ in $(seq 600); do
		[ -e "$1" ] && return
		kill -0 "$2" || { echo "demo: the program that should make $1 has ended" >&2; exit 1; }
		sleep 0.05
	done
	echo "demo: $1 did not appear within 30 s" >&2
	exit 1
}

exec 9</run
flock -w 10 9 || { echo "demo: another one is running on this machine" >&2; exit 1; }
trap finish EXIT
remove_all

step "An ordinary user, and a system configuration in $work"
mkdir "$work"
useradd --user-group --home-dir "$work/home" --create-home "$user"
install -m 644 "$here/io.yaml" "$work"
cat > "$work/system.yaml" <<-YAML
	run_dir: $work/run
	log_dir: $work/log
	state_dir: $work/state
	keys: {private: $work/signing/private.pem, public_dir: $work/keys}
	signing: {socket: $work/sign/sign.sock}
YAML

step "root: the signing service, which makes its key on its first start"
as_root datacrumbs_sign_probes --config "$work/system.yaml" & service=$!
wait_for "$work/sign/sign.sock" "$service"

step "$user: a signed probe file from examples/io.yaml"
as_user datacrumbs_probe_configurator --config "$work/system.yaml" \
	"$work/io.yaml" "$work/home/probes.json.gz"

step "root: the daemon of run $run"
as_root datacrumbs --config "$work/system.yaml" "$work/home/probes.json.gz" "$run" & daemon=$!
wait_for "$work/run/datacrumbs-$run.ready" "$daemon"

step "$user: a program that joins the run"
as_user env DATACRUMBS_RUN_ID="$run" datacrumbs_wrap sh -c '
	dd if=/dev/zero of=big bs=64k count=400 conv=fsync status=none
	dd if=/dev/zero of=odd bs=4097 count=23 status=none
	cp big copy && tar cf all.tar big odd && cat all.tar | wc -c >/dev/null
	rm big copy odd all.tar'

step "root: stop the daemon"
kill -TERM "$daemon"
wait "$daemon"
daemon=''

step "$user: where did the time go?"
as_user datacrumbs_report "$work/home/datacrumbs/$run"
