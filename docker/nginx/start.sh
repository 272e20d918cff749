#!/bin/sh
# Runs nginx, and keeps its upstream what it should be. Every second: which replicas are
# there (DNS), which of them say that they are stopping (those are left out, so that their
# last requests end in peace); and nginx is reloaded when the list has changed.
# Why not nginx itself: docs/adr/0013.
set -eu

port=8080
upstream=/tmp/upstream.conf

there() { getent ahostsv4 api | cut -d ' ' -f 1 | sort -u; }

# Of the addresses given, those of replicas that are stopping. One curl asks them all, at
# once: together, those that hang cost one second. Each answer into a file of its own.
stopping() {
	rm -f /tmp/ready.*
	for address; do
		set -- "$@" -o "/tmp/ready.$address" "http://$address:$port/health/ready"
		shift
	done
	curl -s -Z -m 1 "$@" || true
	grep -ls '"status":"stopping"' /tmp/ready.* | cut -d . -f 2-
}

write() {
	printf 'upstream api {\n    zone api 256k;\n'
	for address; do
		printf '    server %s:%s max_fails=2 fail_timeout=2s;\n' "$address" "$port"
	done
	# There has to be one: without replicas, the answer is 502.
	[ $# -gt 0 ] || printf '    server 127.0.0.1:1 down;\n'
	# Shorter than the API's own, so that it is never the one to close.
	printf '    keepalive 128;\n    keepalive_requests 100000;\n    keepalive_timeout 60s;\n}\n'
}

# Sets `replicas`. None that is not stopping, or no answer from DNS: what there was stays.
look() {
	all=$(there) || all=""
	[ -n "$all" ] || return 0
	# shellcheck disable=SC2086 # one word each
	leaving=$(stopping $all) || leaving=""
	rest=$(printf '%s\n' "$all" | grep -vxF "$leaving" || true)
	[ -z "$leaving" ] || all=$rest
	[ -z "$all" ] || replicas=$all
}

replicas=""
look
# shellcheck disable=SC2086
write $replicas >"$upstream"
nginx &
nginx=$!
trap 'kill -QUIT "$nginx"' QUIT TERM INT
trap 'kill -HUP "$nginx"' HUP

while kill -0 "$nginx" 2>/dev/null; do
	sleep 1 &
	wait $! || true
	before=$replicas
	look
	[ "$replicas" != "$before" ] || continue
	# shellcheck disable=SC2086
	write $replicas >"$upstream"
	kill -HUP "$nginx"
done
wait "$nginx"
