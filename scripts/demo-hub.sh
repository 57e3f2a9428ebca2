#!/bin/sh
# The demo of the hub: eight machines at once over the network with TLS, four read by the hub
# (pull) and four sent by clients (push); progress, a schedule, metrics, curl; the hub killed in
# the middle; a restore that is compared.  Needs nothing but the built binary and Debian packages;
# leaves nothing behind.
set -eu

. "$(dirname -- "$0")/demo-frame.sh"
hub=

plain() {
	sed "s|$sendense|sendense|g; s|$scratch/||g; s|${url:-no-url-yet}|https://hub|g"
}

show() {
	printf '$ %s\n' "$*" | plain
	"$@" | plain
}

# A member of the JSON object on standard input: "points.0.mode".
member() {
	python3 -c 'import functools, json, sys
step = lambda at, name: at[int(name)] if isinstance(at, list) else at[name]
print(functools.reduce(step, sys.argv[1].split("."), json.load(sys.stdin)))' "$1"
}

# Calls the API with curl: METHOD PATH [BODY]
api() {
	curl --silent --show-error --fail-with-body --cacert "$scratch/state/tls/ca.crt" \
		--header @"$scratch/token.header" --request "$1" ${3:+--json "$3"} "$url/api/v1/$2"
}

# The same, shown as one would type it.
show_api() {
	printf '$ curl --cacert ca.crt -H @token.header -X %s%s https://hub/api/v1/%s\n' "$1" \
		"${3:+ --json '$3'}" "$2"
	api "$@" | python3 -m json.tool | plain
}

start_hub() {
	rm -f "$scratch/ready"
	mkfifo "$scratch/ready"
	"$sendense" hub run --config "$scratch/hub.conf" >"$scratch/ready" 2>>"$scratch/hub.log" &
	hub=$!
	read -r url <"$scratch/ready"
	# The kernel picked a port; when it is started again it is to be the same one.
	sed -i "s|^listen = 127.0.0.1:0\$|listen = ${url#*://}|;t done;b;:done;n;b done" "$scratch/hub.conf"
}

# Of all jobs since the last step, one line each.
table() {
	api GET "jobs?limit=8" | python3 -c 'import json, sys
for job in sorted(json.load(sys.stdin)["items"], key=lambda job: job["vm"] or ""):
    p = job["progress"] or {}
    print("%-6s %-7s %-10s %-14s %6.1f MiB of %6.1f MiB" % (job["vm"], job["kind"], job["state"],
          job["stage"] or "", p.get("logical", 0) / 2**20, (p.get("total") or 0) / 2**20))'
}

# Follows a job to its end by its events.
follow() {
	curl --silent --no-buffer --cacert "$scratch/state/tls/ca.crt" \
		--header @"$scratch/token.header" "$url/api/v1/jobs/$1/events"
}

# Until none of the hub's jobs is open.
wait_for_jobs() {
	for id in $(api GET "jobs?state=open" | python3 -c 'import json, sys
print(*[job["id"] for job in json.load(sys.stdin)["items"]])'); do
		follow "$id" >/dev/null
	done
}

# Eight at once: four that the hub is told to read, four clients that send.
back_up_all() { # [RATE]
	clients=
	for vm in 5 6 7 8; do
		"$sendense" backup --repo "$url" --token-file "$scratch/state/admin.token" \
			--ca-file "$scratch/state/tls/ca.crt" --vm "vm$vm" \
			--disk "2000=raw:$scratch/vm$vm.raw" --quiet ${1:+--limit-rate "$1"} &
		clients="$clients $!"
	done
	for vm in 1 2 3 4; do
		job=$(api POST backups "{\"repository\":\"main\",\"vm\":\"vm$vm\",\"disks\":[{\"key\":\"2000\",
			\"source\":\"nbd+unix:///?socket=$scratch/vm$vm.sock\"}]${1:+,\"limit_rate\":${1%MiB}000000}}" |
			member id)
	done
}

wait_for_clients() {
	for pid in $clients; do
		wait "$pid"
	done
	wait_for_jobs
}

# The guests write.
change_all() { # SEED
	for vm in 1 2 3 4 5 6 7 8; do
		dd if=/dev/urandom of="$scratch/vm$vm.raw" bs=64k seek=$((300 + $1 * 97 + vm)) count=64 \
			conv=notrunc status=none
	done
}

step "1. Eight machines; four disks are served by qemu-nbd, as a hypervisor would"
for vm in 1 2 3 4 5 6 7 8; do
	truncate -s 256M "$scratch/vm$vm.raw"
	dd if=/dev/urandom of="$scratch/vm$vm.raw" bs=1M count=48 seek=$((vm * 4)) conv=notrunc status=none
done
for vm in 1 2 3 4; do
	qemu-nbd --fork -f raw -r --shared=8 --persistent -k "$scratch/vm$vm.sock" \
		--pid-file "$scratch/vm$vm.pid" "$scratch/vm$vm.raw"
	servers="$servers $(cat "$scratch/vm$vm.pid")"
done
ls -lsh "$scratch"/*.raw | plain

step "2. All that a hub needs: CA, certificate, token, repository, settings"
show "$sendense" hub init --config "$scratch/hub.conf" --state-dir "$scratch/state" \
	--runtime-dir "$scratch/run" --listen 127.0.0.1:0 --nbd-listen 127.0.0.1:0 --name hub \
	--repository "$scratch/repo" --allow-source "nbd+unix:$scratch/"
printf '[limits]\njobs = 8\njobs-per-source = 8\n' >>"$scratch/hub.conf"
show "$sendense" hub check-config --config "$scratch/hub.conf"
(umask 077 && printf 'Authorization: Bearer %s' "$(cat "$scratch/state/admin.token")" >"$scratch/token.header")

step "3. The hub runs: the API and the NBD service, both with TLS, on ports of the kernel's choice"
start_hub
echo "ready on $url (called https://hub below)"
show_api GET health

step "4. Eight full backups at once: POST /backups for vm1 to vm4, \"sendense backup --repo https://hub\" for vm5 to vm8"
back_up_all
echo "one of them, followed by its events:"
follow "$job" | grep -v '^:' | cut -c 1-150 | head -n 12
wait_for_clients
table

step "5. The guests write 4 MiB each, and eight incremental ones; the hub is killed in the middle and started again"
change_all 1
back_up_all 25MiB
follow "$job" | grep -q '"stage":"copy"'
kill -9 "$hub"
wait "$hub" 2>/dev/null || true
start_hub
echo "kill -9, and up again"
wait_for_clients
table

step "6. What there is, and whether it is good"
export SENDENSE_TOKEN_FILE="$scratch/state/admin.token" SENDENSE_CA_FILE="$scratch/state/tls/ca.crt"
show "$sendense" ls --repo "$url" vm1
show "$sendense" verify --repo "$url"
for vm in 1 2 3 4 5 6 7 8; do
	set -- "$scratch/repo/vms/vm$vm/disks/2000"/*.qcow2
	[ $# -eq 2 ]
	qemu-img compare -f raw -F qcow2 "$scratch/vm$vm.raw" "$2" >"$scratch/compared"
	printf 'qemu-img compare vm%s: %s\n' "$vm" "$(cat "$scratch/compared")"
done

step "7. A restore over the network, compared with the source; and one served, to be looked at at once"
show "$sendense" restore --repo "$url" vm7 --to "raw:$scratch/restored.raw"
show cmp "$scratch/vm7.raw" "$scratch/restored.raw" && echo "identical"
api POST serves '{"repository":"main","vm":"vm3"}' >"$scratch/serve.json"
(umask 077 && python3 - "$scratch" <<'PYTHON'
import json, sys
folder = sys.argv[1]
export = json.load(open(f"{folder}/serve.json"))["exports"][0]
tls = export["tls"]
open(f"{folder}/serve.psk", "w").write(f"{tls['identity']}:{tls['psk']}\n")
open(f"{folder}/serve.uri", "w").write(f"nbds://{tls['identity']}@{export['address']}:{export['port']}"
                                       f"/{export['name']}?tls-psk-file={folder}/serve.psk")
PYTHON
)
echo '$ nbdinfo "$(cat serve.uri)"'
nbdinfo --no-content "$(cat "$scratch/serve.uri")" | sed -n '1,2p;/export-size/p' | plain
api DELETE "serves/$(member id <"$scratch/serve.json")"

step "8. A policy, a schedule, and when it is due next"
show_api POST schedules '{"id":"nightly","cron":"30 1 * * *","time_zone":"Europe/Berlin","jitter_s":600}' | head -n 6
show_api POST policies '{"id":"two-weeks","vms":["vm*"],"schedules":["nightly"],"keep":{"last":3,"daily":14}}' | head -n 6
show_api GET 'schedules/nightly/next?count=3'
show_api POST prunes '{"repository":"main","keep":{"last":1},"dry_run":true}' | head -n 6
wait_for_jobs

step "9. Figures for Prometheus, and who did what"
curl --silent --cacert "$scratch/state/tls/ca.crt" --header @"$scratch/token.header" "$url/metrics" |
	grep -v '^#' | head -n 12
api GET "events?limit=1000" | python3 -c 'import json, sys
for event in json.load(sys.stdin)["items"][-5:]:
    print(event["time"], event["actor"], event["action"], event["object"])' | plain

step "10. A token that may back up vm5, and nothing else"
token=$(api POST tokens '{"name":"vm5","scope":"backup","vms":["vm5"]}' | member token)
(umask 077 && printf 'Authorization: Bearer %s' "$token" >"$scratch/vm5.header")
curl --silent --cacert "$scratch/state/tls/ca.crt" --header @"$scratch/vm5.header" \
	"$url/api/v1/repositories/main/vms/vm1/points" | python3 -m json.tool | plain

step "11. The end: nothing stays behind"
kill "$hub"
wait "$hub"
hub=
left=0
for pid in /proc/[0-9]*; do
	if { tr '\0' ' ' <"$pid/cmdline"; } 2>/dev/null | grep -q -- "sendense .*$scratch/run"; then
		left=$((left + 1))
	fi
done
echo "the hub ended; $left of its processes are left; $(find "$scratch/run" -type s | wc -l) sockets"
[ "$left" -eq 0 ]
printf '%-50s %8d s\n' "whole demo" "$(($(date +%s) - began))"
