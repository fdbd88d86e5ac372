#!/bin/bash
# The whole way once, for real: key, signing service, probe file, daemon, a traced program, report.
# Needs root. Everything lies in a temporary directory and is removed at the end, the user too.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
user=datacrumbs-demo
run=demo-$$
work=$(mktemp -d)
service='' daemon=''

finish() {
	for pid in $daemon $service; do kill -TERM "$pid" 2>/dev/null && wait "$pid" || true; done
	userdel "$user" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }
as_user() { setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all \
	env -C "$work/home" HOME="$work/home" USER="$user" "$@"; }
wait_for() { # FILE PID
	for _ in $(seq 200); do
		[ -e "$1" ] && return
		kill -0 "$2" || { echo "demo: the program that should make $1 has ended" >&2; exit 1; }
		sleep 0.05
	done
	echo "demo: $1 did not appear within 10 s" >&2
	exit 1
}

step "An ordinary user, and a system configuration in $work"
chmod 755 "$work"
useradd --home-dir "$work/home" --create-home "$user"
cat > "$work/system.yaml" <<-YAML
	run_dir: $work/run
	log_dir: $work/log
	keys: {private: $work/signing/private.pem, public_dir: $work/keys}
	signing: {socket: $work/sign/sign.sock}
YAML

step "root: the signing service, which makes its key on its first start"
datacrumbs_sign_probes --config "$work/system.yaml" & service=$!
wait_for "$work/sign/sign.sock" "$service"

step "$user: a signed probe file from examples/io.yaml"
as_user datacrumbs_probe_configurator --config "$work/system.yaml" \
	"$here/io.yaml" "$work/home/probes.json.gz"

step "root: the daemon of run $run"
datacrumbs --config "$work/system.yaml" "$work/home/probes.json.gz" "$run" & daemon=$!
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
