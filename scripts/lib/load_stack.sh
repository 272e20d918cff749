# load_stack.sh: the scaled-out system as processes of this machine, for load tests: nginx with
# the repository's nginx.conf, replicas of the API, a worker with simulated containers,
# Postgres, its streaming replica, and Redis. It also measures what each of them uses.
#
# They are processes, not containers, so that no image is needed and a component's processor
# time is that of its processes. Everything is in .app/load and is removed at the end.
#
# LOAD_TENANTS (50): how many tenants the users belong to. LOAD_APP: another build of the
# program, to compare two.
#
# Sourced after setup.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # phase reads PHASE_NOTE

LOAD_READY=""
COMPONENTS=(nginx api worker primary replica redis)

# The first step of each load script: installs tools, builds both programs, removes what an
# earlier run left.
load_setup() {
	trap load_exit_trap EXIT
	trap 'exit 130' INT TERM HUP
	state_open "$DEV"
	lock_state
	setup_unset_own
	unset DATABASE_URL DATABASE_READ_URL REDIS_URL DOCKER_HOST
	export COMPUTE_BACKEND=simulated NETWORK_BACKEND=simulated
	ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -H -n)"
	phase install install_missing postgres redis nginx
	NGINX=$(nginx_find)
	LOAD_READY=yes
	stack_down
	state_open "$DEV/load"
	base_choose "$STATE"
	cd "$ROOT" || exit
	local built
	built=$(cargo metadata --no-deps --offline --format-version 1 2>/dev/null | jq -r .target_directory)
	[ -n "${LOAD_APP-}" ] || phase_shown app cargo build --profile bench --bin app
	phase_shown goose cargo build --release --manifest-path tests/load/Cargo.toml --target-dir "$built/load"
	APP_BIN=${LOAD_APP:-$built/release/app}
	GOOSE_BIN=$built/load/release/app-load
}

load_exit_trap() {
	local status=$?
	trap - EXIT
	trap '' INT TERM HUP
	set +e
	install_undo
	phase_failed "$status"
	cd /
	if [ -n "$LOAD_READY" ]; then
		stack_down >/dev/null 2>&1
		state_remove_if_unused
	fi
	exit "$status"
}

# Stops and removes everything; also what a killed script left.
stack_down() {
	state_open "$DEV/load"
	BASE=$STATE
	[ ! -s "$STATE/base" ] || BASE=$(cat "$STATE/base")
	stack_stop_app
	redis_stop
	on_replica postgres_stop
	postgres_stop
	remove_tree "$BASE"
	remove_tree "$STATE"
}

stack_stop_app() {
	local record
	for record in "$STATE"/nginx.pid "$STATE"/api-*.pid "$STATE"/worker.pid; do
		[ ! -e "$record" ] || process_stop "$record" 15
	done
}

# on_replica COMMAND…: runs a function of postgres.sh for the read replica.
on_replica() {
	local BASE=$BASE/replica LOGS=$STATE/log/replica
	mkdir -p "$LOGS"
	"$@"
}

stack_services() {
	phase postgres postgres_start max_connections=300 shared_buffers=256MB pg_stat_statements.track_planning=on
	phase database postgres_app
	phase replica stack_replica
	phase redis redis_start
	DATABASE_URL=$(postgres_url app app)
	DATABASE_READ_URL=$(on_replica postgres_url app app)
	REDIS_URL=unix:$(redis_socket)
	export DATABASE_URL DATABASE_READ_URL REDIS_URL APP_STATE_DIR=$STATE/host RUST_LOG=warn
	phase migrate "$APP_BIN" migrate
}

stack_replica() {
	local dir=$BASE/replica/postgres
	own_directory "$BASE/replica"
	mkdir -p "$dir/data" "$dir/socket"
	chmod 700 "$dir/data"
	[ -z "$PG_USER" ] || chown "$PG_USER" "$dir/data"
	as_postgres
	(cd / && "${AS_POSTGRES[@]}" "$PG_BIN/pg_basebackup" -d "$(postgres_url postgres postgres)" -D "$dir/data" -R -c fast --no-sync)
	: >"$dir/ready"
	on_replica postgres_start max_connections=300 shared_buffers=256MB
}

# stack_app REPLICAS: starts that many replicas of the API, a worker and nginx. Sets API_URLS
# and LOAD_URL.
stack_app() {
	local n port
	API_URLS=()
	for ((n = 1; n <= $1; n++)); do
		port=$(port_free)
		spawn "$STATE/api-$n.pid" "$LOGS/api-$n.log" env APP_LISTEN="127.0.0.1:$port" "$APP_BIN" serve
		wait_until 30 curl -fs -o /dev/null "http://127.0.0.1:$port/health/ready" || die "a replica does not start: $(tail -n 3 "$LOGS/api-$n.log")"
		API_URLS+=("http://127.0.0.1:$port")
	done
	port=$(port_free)
	# Provisioning an instance takes 4 steps of 200 ms. 256 slots are enough for all jobs at once.
	spawn "$STATE/worker.pid" "$LOGS/worker.log" env APP_WORK_LISTEN="127.0.0.1:$port" WORK_CONCURRENCY=256 SIMULATED_LATENCY_MS=200 "$APP_BIN" work
	wait_until 30 curl -fs -o /dev/null "http://127.0.0.1:$port/health/ready" || die "the worker does not start: $(tail -n 3 "$LOGS/worker.log")"
	stack_nginx
}

stack_nginx() {
	local port dir=$STATE/nginx url
	port=$(port_free)
	mkdir -p "$dir"
	chmod 755 "$dir"
	{
		printf 'upstream api {\n    zone api 256k;\n'
		for url in "${API_URLS[@]}"; do printf '    server %s max_fails=2 fail_timeout=2s;\n' "${url#http://}"; done
		printf '    keepalive 128;\n    keepalive_requests 100000;\n    keepalive_timeout 60s;\n}\n'
	} >"$dir/upstream.conf"
	sed "s|/tmp/|$dir/|; s|listen 8080|listen 127.0.0.1:$port|" nginx.conf >"$dir/nginx.conf"
	spawn "$STATE/nginx.pid" "$LOGS/nginx.log" "$NGINX" -p "$dir" -c "$dir/nginx.conf" -e stderr
	LOAD_URL=http://127.0.0.1:$port
	wait_until 10 curl -fs -o /dev/null "$LOAD_URL/health/ready" || die "nginx does not serve: $(tail -n 3 "$LOGS/nginx.log")"
}

# stack_keys N: creates N keys of LOAD_TENANTS tenants and writes them into STATE/keys, one a
# line.
stack_keys() {
	local tenants=${LOAD_TENANTS:-50} each t admin urls=()
	((tenants <= $1)) || tenants=$1
	each=$((($1 + tenants - 1) / tenants))
	while ((${#urls[@]} < each)); do urls+=("${API_URLS[0]}/keys"); done
	: >"$STATE/keys.json"
	for ((t = 1; t <= tenants; t++)); do
		admin=$("$APP_BIN" keys create --tenant "load-$t" --name admin --scope admin)
		printf 'header = "X-API-Key: %s"\n' "$admin" | curl -fsS -K - -H 'Content-Type: application/json' \
			-d '{"name":"user","scopes":["instances:read","instances:write"]}' -w '\n' "${urls[@]}" >>"$STATE/keys.json"
	done
	(umask 077 && jq -r .key "$STATE/keys.json" >"$STATE/keys")
	rm -f "$STATE/keys.json"
	PHASE_NOTE="$(wc -l <"$STATE/keys") of $tenants tenants"
}

# process_tree_ms PID: prints the processor time of a tree of processes, in ms. It includes
# children that have ended.
process_tree_ms() {
	local pid=$1 stat child sum
	stat=$(cat "/proc/$pid/stat" 2>/dev/null) || { echo 0 && return; }
	read -r -a stat <<<"${stat##*) }"
	sum=$(((stat[11] + stat[12] + stat[13] + stat[14]) * 1000 / $(getconf CLK_TCK)))
	# shellcheck disable=SC2013 # the file has pids separated by blanks on one line
	for child in $(cat "/proc/$pid"/task/*/children 2>/dev/null); do ((sum += $(process_tree_ms "$child"))) || true; done
	echo "$sum"
}

# Prints a line "COMPONENT MS" for each component.
stack_cpu_times() {
	local component record pid sum records
	for component in "${COMPONENTS[@]}"; do
		case $component in
		api) records=("$STATE"/api-*.pid) ;;
		primary) records=("$BASE/postgres.pid") ;;
		replica) records=("$BASE/replica/postgres.pid") ;;
		redis) records=("$BASE/redis.pid") ;;
		*) records=("$STATE/$component.pid") ;;
		esac
		sum=0
		for record in "${records[@]}"; do
			! pid=$(process_alive "$record") || ((sum += $(process_tree_ms "$pid"))) || true
		done
		echo "$component $sum"
	done
}

# connections_to PORT: prints how many connections a port of this machine has.
connections_to() {
	awk -v p="$(printf ':%04X' "$1")" '$4 == "01" && substr($2, length($2) - 4) == p { n++ } END { print n + 0 }' /proc/net/tcp
}

# Prints the eight statements that took most time on the primary: calls, ms per call to plan
# and to execute, and the beginning of the text.
stack_statements() {
	postgres_sql app "select format('| %s | %s | %s | \`%s\` |', calls,
		  round((total_plan_time / calls)::numeric, 3), round((total_exec_time / calls)::numeric, 3),
		  left(regexp_replace(query, '\\s+', ' ', 'g'), 80))
		from pg_stat_statements where calls > 0 order by total_exec_time + total_plan_time desc limit 8"
}

# Prints the largest resident memory of the replicas of the API, in MiB.
stack_api_mib() {
	local record pid
	for record in "$STATE"/api-*.pid; do
		pid=$(process_alive "$record")
		awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$pid/status"
	done | sort -n | tail -n 1
}

# run_load URL USERS SECONDS THINK_MS [RAMP_SECONDS]: runs the load generator. Writes its table
# to STATE/table, its figures to STATE/summary, and processor time per component to STATE/cpu
# ("COMPONENT MS-PER-REQUEST"). Fails when a response was not the expected one.
run_load() {
	local url=$1 users=$2 seconds=$3 think=$4 ramp=${5:-10} failed=""
	rm -f "$STATE/summary"
	stack_cpu_times >"$STATE/cpu.before"
	APP_LOAD_KEYS=$STATE/keys APP_LOAD_SUMMARY=$STATE/summary APP_LOAD_THINK_MS=$think "$GOOSE_BIN" \
		--host "$url" --users "$users" --increase-time "${ramp}s" --run-time "${seconds}s" >"$STATE/table" 2>&9 || failed=yes
	stack_cpu_times >"$STATE/cpu.after"
	[ -s "$STATE/summary" ] || die "the load generator wrote no summary"
	# shellcheck source=/dev/null
	. "$STATE/summary"
	# shellcheck disable=SC2154 # the summary sets requests
	awk -v n="$requests" 'NR == FNR { before[$1] = $2; next } { printf "%s %.3f\n", $1, ($2 - before[$1]) / n }' \
		"$STATE/cpu.before" "$STATE/cpu.after" >"$STATE/cpu"
	[ -z "$failed" ]
}

# Prints "0.10 | … | SUM", in the order of COMPONENTS.
cpu_cells() { awk '{ sum += $2; printf "%.2f | ", $2 } END { printf "%.2f", sum }' "$STATE/cpu"; }

cpu_headers() { printf '%s | ' "${COMPONENTS[@]}" && printf 'all'; }

describe_machine() {
	printf '%s cores for the system and the load together; %s, PostgreSQL %s, %s; profile bench\n' "$(nproc)" \
		"$("$NGINX" -v 2>&1 | sed 's/.*: //')" "$("$PG_BIN/postgres" --version | sed 's/^postgres (PostgreSQL) \([0-9.]*\).*/\1/')" \
		"$(redis-server --version | sed 's/.*v=\([0-9.]*\).*/Redis \1/')"
}
