# postgres.sh: a private Postgres in BASE/postgres, reachable only through a
# socket in a directory that only its user (and root) may enter.
#
# Sourced after install.sh, process.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for other parts

# postgres_url ROLE DATABASE: the host part is the socket's directory, encoded.
postgres_url() {
	local LC_ALL=C dir=$BASE/postgres/socket encoded="" c i
	for ((i = 0; i < ${#dir}; i++)); do
		c=${dir:i:1}
		case $c in
		[a-zA-Z0-9._~-]) encoded+=$c ;;
		*) encoded+=$(printf '%%%02X' "'$c") ;;
		esac
	done
	printf 'postgresql://%s@%s/%s' "$1" "$encoded" "$2"
}

postgres_sql() { "$PG_BIN/psql" -qAtX -v ON_ERROR_STOP=1 -d "$(postgres_url postgres "$1")" -c "$2"; }

# postgres_start SETTING=VALUE…
postgres_start() {
	local dir=$BASE/postgres setting options=()
	PG_BIN=$(postgres_bin) || die "no Postgres server found under /usr/lib/postgresql"
	as_postgres
	if ! process_alive "$BASE/postgres.pid" >/dev/null; then
		# What was left half-made is no cluster.
		[ -e "$dir/ready" ] || remove_tree "$dir"
		mkdir -p "$dir/data" "$dir/socket"
		chmod 700 "$dir/data" "$dir/socket"
		[ -z "$PG_USER" ] || chown "$PG_USER" "$dir/data" "$dir/socket"
		if [ ! -e "$dir/ready" ]; then
			# C.UTF-8: the same order of texts on every machine.
			(cd / && "${AS_POSTGRES[@]}" "$PG_BIN/initdb" -D "$dir/data" -U postgres \
				--auth=trust -E UTF8 --locale=C.UTF-8 --no-sync)
			: >"$dir/ready"
		fi
		# The library is in the server's own package since Postgres 10, but not everywhere.
		[ ! -e "$PG_BIN/../lib/pg_stat_statements.so" ] || options+=(-c shared_preload_libraries=pg_stat_statements)
		postgres_unlock "$dir/data"
		for setting in "$@"; do options+=(-c "$setting"); done
		spawn "$BASE/postgres.pid" "$LOGS/postgres.log" "${AS_POSTGRES[@]}" \
			"$PG_BIN/postgres" -D "$dir/data" \
			-c listen_addresses= -c "unix_socket_directories=$dir/socket" \
			-c wal_level=replica -c max_wal_senders=10 "${options[@]}"
		wait_until 60 postgres_settled || true
		postgres_answers >/dev/null || {
			tail -n 20 "$LOGS/postgres.log"
			die "Postgres did not start: $(tail -n 1 "$LOGS/postgres.log")"
		}
	fi
	PHASE_NOTE="$("$PG_BIN/postgres" --version | sed 's/ (PostgreSQL)//; s/ (.*//')"
}

# After a crash Postgres may take somebody else's process, or one that nobody
# has reaped, for a running server. Its locks go once no process works in the
# data directory.
postgres_unlock() {
	[ -e "$1/postmaster.pid" ] || return 0
	! wait_until 10 postgres_deserted "$1" || rm -f "$1/postmaster.pid" "$1"/../socket/.s.*
}

postgres_deserted() {
	local cwd
	for cwd in /proc/[0-9]*/cwd; do
		[ "$(readlink "$cwd" 2>/dev/null)" != "$1" ] || return 1
	done
}

postgres_answers() { process_alive "$BASE/postgres.pid" && postgres_sql postgres 'select 1'; }

postgres_settled() { process_gone "$BASE/postgres.pid" || postgres_answers; }

# The app's own role and database: no superuser, as in production.
postgres_app() {
	[ -n "$(postgres_sql postgres "select 1 from pg_roles where rolname = 'app'")" ] ||
		postgres_sql postgres "create role app login; grant pg_monitor to app"
	[ -n "$(postgres_sql postgres "select 1 from pg_database where datname = 'app'")" ] ||
		postgres_sql postgres "create database app owner app"
	postgres_sql app "create extension if not exists pg_stat_statements" || true
}

# SIGINT, Postgres' fast shutdown: SIGTERM waits for its clients to leave.
postgres_stop() {
	local pid
	if pid=$(process_alive "$BASE/postgres.pid"); then
		signal INT "$pid"
		wait_until 30 process_gone "$BASE/postgres.pid" || true
	fi
	process_stop "$BASE/postgres.pid" 5
}
