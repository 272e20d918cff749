# postgres.sh: a private Postgres in BASE/postgres. It listens only on a socket in a directory
# that only its user (and root) may enter.
#
# Sourced after install.sh, process.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

# postgres_url ROLE DATABASE: prints the URL. Its host is the socket's directory, percent-encoded.
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

# postgres_start SETTING=VALUE…: starts the server unless it runs, and creates its data first.
postgres_start() {
	local dir=$BASE/postgres setting options=()
	PG_BIN=$(postgres_bin) || die "no Postgres server found under /usr/lib/postgresql"
	as_postgres
	if ! process_alive "$BASE/postgres.pid" >/dev/null; then
		# Without this file an earlier initdb was interrupted.
		[ -e "$dir/ready" ] || remove_tree "$dir"
		mkdir -p "$dir/data" "$dir/socket"
		chmod 700 "$dir/data" "$dir/socket"
		[ -z "$PG_USER" ] || chown "$PG_USER" "$dir/data" "$dir/socket"
		if [ ! -e "$dir/ready" ]; then
			# C.UTF-8 sorts text in the same order on every machine.
			(cd / && "${AS_POSTGRES[@]}" "$PG_BIN/initdb" -D "$dir/data" -U postgres \
				--auth=trust -E UTF8 --locale=C.UTF-8 --no-sync)
			: >"$dir/ready"
		fi
		# Some builds of Postgres come without this library.
		[ ! -e "$PG_BIN/../lib/pg_stat_statements.so" ] || options+=(-c shared_preload_libraries=pg_stat_statements)
		postgres_remove_stale_lock "$dir/data"
		for setting in "$@"; do options+=(-c "$setting"); done
		spawn "$BASE/postgres.pid" "$LOGS/postgres.log" "${AS_POSTGRES[@]}" \
			"$PG_BIN/postgres" -D "$dir/data" \
			-c listen_addresses= -c "unix_socket_directories=$dir/socket" \
			-c wal_level=replica -c max_wal_senders=10 "${options[@]}"
		wait_until 60 postgres_up_or_exited || true
		postgres_answers >/dev/null || {
			tail -n 20 "$LOGS/postgres.log"
			die "Postgres did not start: $(tail -n 1 "$LOGS/postgres.log")"
		}
	fi
	PHASE_NOTE="$("$PG_BIN/postgres" --version | sed 's/ (PostgreSQL)//; s/ (.*//')"
}

# After a crash, the pid in Postgres' lock file may belong to another process or to a zombie,
# and Postgres would refuse to start. The lock files are removed once no process has the data
# directory as its working directory.
postgres_remove_stale_lock() {
	[ -e "$1/postmaster.pid" ] || return 0
	! wait_until 10 postgres_data_unused "$1" || rm -f "$1/postmaster.pid" "$1"/../socket/.s.*
}

postgres_data_unused() {
	local cwd
	for cwd in /proc/[0-9]*/cwd; do
		[ "$(readlink "$cwd" 2>/dev/null)" != "$1" ] || return 1
	done
}

postgres_answers() { process_alive "$BASE/postgres.pid" && postgres_sql postgres 'select 1'; }

postgres_up_or_exited() { process_gone "$BASE/postgres.pid" || postgres_answers; }

# Creates the app's role and database. The role is no superuser, as in production.
postgres_app() {
	[ -n "$(postgres_sql postgres "select 1 from pg_roles where rolname = 'app'")" ] ||
		postgres_sql postgres "create role app login; grant pg_monitor to app"
	[ -n "$(postgres_sql postgres "select 1 from pg_database where datname = 'app'")" ] ||
		postgres_sql postgres "create database app owner app"
	postgres_sql app "create extension if not exists pg_stat_statements" || true
}

# SIGINT is Postgres' fast shutdown; SIGTERM would wait until all clients disconnect.
postgres_stop() {
	local pid
	if pid=$(process_alive "$BASE/postgres.pid"); then
		signal INT "$pid"
		wait_until 30 process_gone "$BASE/postgres.pid" || true
	fi
	process_stop "$BASE/postgres.pid" 5
}
