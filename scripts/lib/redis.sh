# redis.sh: a private Redis in BASE/redis with the settings that the app requires: AOF on,
# no eviction. It listens on a socket; for the tests also on a port, because they put a proxy
# in front of it.
#
# Sourced after install.sh, process.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

redis_socket() { printf '%s' "$BASE/redis/redis.sock"; }

# redis_start [PORT]
redis_start() {
	local port=${1:-0} dir=$BASE/redis
	redis_check_version
	if ! process_alive "$BASE/redis.pid" >/dev/null; then
		mkdir -p "$dir"
		chmod 700 "$dir"
		rm -f "$(redis_socket)"
		spawn "$BASE/redis.pid" "$LOGS/redis.log" redis-server --dir "$dir" --daemonize no \
			--bind 127.0.0.1 --port "$port" --unixsocket "$(redis_socket)" --unixsocketperm 700 \
			--appendonly yes --appendfsync everysec --maxmemory-policy noeviction
		wait_until 30 redis_up_or_exited || true
		redis_answers >/dev/null ||
			die "Redis did not start: $(tail -n 1 "$LOGS/redis.log")"
	fi
	PHASE_NOTE=$(redis-server --version | sed 's/.*v=\([0-9.]*\).*/redis \1/')
}

redis_answers() { process_alive "$BASE/redis.pid" && [ "$(redis-cli -s "$(redis_socket)" ping)" = PONG ]; }

redis_up_or_exited() { process_gone "$BASE/redis.pid" || redis_answers; }

redis_stop() { process_stop "$BASE/redis.pid" 10; }
