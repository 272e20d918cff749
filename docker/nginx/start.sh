#!/bin/sh
# Runs nginx and keeps its upstream current. Every second it resolves the addresses of the
# replicas in DNS and removes those that answer `stopping`, so that a replica can finish its last
# requests. When the list has changed, it reloads nginx.
# docs/adr/0013-upstream-from-dns.md says why nginx cannot do this itself.
set -eu

port=8080
upstream=/tmp/upstream.conf

addresses() { getent ahostsv4 api | cut -d ' ' -f 1 | sort -u; }

# stopping ADDRESS…: prints the addresses of replicas that are stopping. One curl requests all of
# them in parallel, so those that hang cost one second together. Each response is a file.
stopping() {
	rm -f /tmp/ready.*
	for address; do
		set -- "$@" -o "/tmp/ready.$address" "http://$address:$port/health/ready"
		shift
	done
	curl -s -Z -m 1 "$@" || true
	grep -ls '"status":"stopping"' /tmp/ready.* | cut -d . -f 2-
}

write_upstream() {
	printf 'upstream api {\n    zone api 256k;\n'
	for address; do
		printf '    server %s:%s max_fails=2 fail_timeout=2s;\n' "$address" "$port"
	done
	# An upstream needs at least one server. Without replicas the response is 502.
	[ $# -gt 0 ] || printf '    server 127.0.0.1:1 down;\n'
	# Shorter than the API's keep-alive, so that nginx closes idle connections first. A replica
	# that closed one first could cost a request.
	printf '    keepalive 128;\n    keepalive_requests 100000;\n    keepalive_timeout 60s;\n}\n'
}

# Sets `replicas`. The list stays as it is when DNS does not respond or all replicas are stopping.
update_replicas() {
	all=$(addresses) || all=""
	[ -n "$all" ] || return 0
	# shellcheck disable=SC2086 # one word each
	leaving=$(stopping $all) || leaving=""
	rest=$(printf '%s\n' "$all" | grep -vxF "$leaving" || true)
	[ -z "$leaving" ] || all=$rest
	[ -z "$all" ] || replicas=$all
}

replicas=""
update_replicas
# shellcheck disable=SC2086
write_upstream $replicas >"$upstream"
nginx &
nginx=$!
trap 'kill -QUIT "$nginx"' QUIT TERM INT
trap 'kill -HUP "$nginx"' HUP

while kill -0 "$nginx" 2>/dev/null; do
	sleep 1 &
	wait $! || true
	before=$replicas
	update_replicas
	[ "$replicas" != "$before" ] || continue
	# shellcheck disable=SC2086
	write_upstream $replicas >"$upstream"
	kill -HUP "$nginx"
done
wait "$nginx"
