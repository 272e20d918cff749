# server.sh: finds the app's binary, writes dev.env, starts and stops `app dev`.
#
# Sourced after setup.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

APP_RECORD=$DEV/app.pid
APP_LOG=$DEV/app.log

server_bin() {
	APP_BIN=$(cd "$ROOT" && cargo metadata --no-deps --offline --format-version 1 2>/dev/null | jq -r .target_directory)/debug/app
	[ -x "$APP_BIN" ] || die "the build made no program at $APP_BIN"
}

# env_value NAME: prints a value of the existing dev.env.
env_value() {
	[ -f "$ENV_FILE" ] || return 0
	# shellcheck source=/dev/null
	(. "$ENV_FILE" && printf '%s' "${!1-}")
}

env_line() {
	local value=$2
	case $value in
	*[!a-zA-Z0-9_./:@%+,=-]*) value="'${value//\'/\'\\\'\'}'" ;;
	esac
	printf '%s=%s\n' "$1" "$value"
}

# Sets the variables of the app. Ports stay the same between runs, so that URLs stay valid.
server_configure() {
	local listen
	server_bin
	if [ -z "${APP_LISTEN-}" ] || [ -z "${APP_WORK_LISTEN-}" ]; then
		if process_alive "$APP_RECORD" >/dev/null; then
			APP_LISTEN=${APP_LISTEN:-$(env_value APP_LISTEN)}
			APP_WORK_LISTEN=${APP_WORK_LISTEN:-$(env_value APP_WORK_LISTEN)}
		fi
		listen=$(env_value APP_LISTEN)
		APP_LISTEN=${APP_LISTEN:-127.0.0.1:$(port_free ${listen:+"${listen##*:}"} 8080)}
		listen=$(env_value APP_WORK_LISTEN)
		APP_WORK_LISTEN=${APP_WORK_LISTEN:-127.0.0.1:$(port_free ${listen:+"${listen##*:}"} 9091)}
	fi
	APP_URL=http://${APP_LISTEN/#0.0.0.0:/127.0.0.1:}
	APP_STATE_DIR=$DEV/host
	APP_ENV=${APP_ENV:-development}
	APP_HOST_NAME=${APP_HOST_NAME:-dev}
	APP_DEMO_IMAGE=$DEMO_IMAGE
	COMPUTE_BACKEND=${COMPUTE_BACKEND:-docker}
	NETWORK_BACKEND=${NETWORK_BACKEND:-$COMPUTE_BACKEND}
	own_directory "$APP_STATE_DIR"
	chmod 700 "$APP_STATE_DIR"
}

# Prints the environment that the app is started with: the variables that are set.
server_environment() {
	local key
	for key in APP_ENV APP_LISTEN APP_WORK_LISTEN APP_HOST_NAME APP_HOST_ADDRESS APP_HOST_LABELS \
		APP_HOST_CPU_MILLIS APP_HOST_MEMORY_MIB APP_STATE_DIR APP_PORT_RANGE APP_DEFAULT_CIDR APP_LEASE_MS \
		DATABASE_URL DATABASE_READ_URL DATABASE_PASSWORD_FILE DB_MAX_CONNS REDIS_URL REDIS_PASSWORD_FILE \
		DOCKER_HOST APP_REGISTRIES COMPUTE_BACKEND NETWORK_BACKEND \
		SIMULATED_LATENCY_MS SIMULATED_FAIL_RATE APP_ALLOW_SIMULATED WORK_CONCURRENCY APP_SECRETS_DIR \
		APP_KEY_PEPPERS APP_KEY_TAG_SECRETS APP_CACHE_SECRETS IDENTITY_CACHE IDENTITY_L1 \
		RATE_LIMIT_RPS RATE_LIMIT_BURST RUST_LOG; do
		[ -z "${!key-}" ] || env_line "$key" "${!key}"
	done
}

env_write() {
	(
		umask 077
		{
			echo "# Written by make run. For a shell: set -a; . ${ENV_FILE}; set +a"
			env_line APP_URL "$APP_URL"
			env_line APP_API_KEY "${APP_API_KEY-}"
			env_line APP_BIN "$APP_BIN"
			env_line APP_DEMO_IMAGE "$APP_DEMO_IMAGE"
			server_environment
			[ -n "$DOCKER_HOST" ] || env_line DOCKER_HOST ""
		} >"$ENV_FILE.new"
		mv "$ENV_FILE.new" "$ENV_FILE"
	)
}

# Sets APP_WITH: the app with its environment and without APP_API_KEY.
server_app() {
	local lines=() line
	while IFS= read -r line; do lines+=("$line"); done < <(server_environment_raw)
	[ -n "$DOCKER_HOST" ] || lines=(-u DOCKER_HOST "${lines[@]}")
	APP_WITH=(env -u APP_API_KEY "${lines[@]}" "$APP_BIN")
}

server_environment_raw() {
	local key
	server_environment | while IFS= read -r key; do
		key=${key%%=*}
		printf '%s=%s\n' "$key" "${!key}"
	done
}

server_migrate() {
	server_app
	"${APP_WITH[@]}" migrate
}

server_ready() { curl -fs -m 5 -o /dev/null "$APP_URL/health/ready"; }

# Starts app dev. One that runs already with the same binary and environment is kept.
server_start() {
	local fingerprint
	server_app
	fingerprint=$({ stat -L -c '%i %s %Y' "$APP_BIN" && server_environment; } | sha256sum)
	if process_alive "$APP_RECORD" >/dev/null && [ "$fingerprint" = "$(cat "$DEV/app.fingerprint" 2>/dev/null)" ] && server_ready; then
		PHASE_NOTE="already running, pid $(process_alive "$APP_RECORD")"
		return
	fi
	server_stop
	port_is_free "${APP_LISTEN##*:}" || die "port ${APP_LISTEN##*:} is in use: free it, or set APP_LISTEN"
	(umask 077 && : >>"$APP_LOG")
	spawn "$APP_RECORD" "$APP_LOG" "${APP_WITH[@]}" dev
	wait_until 60 server_up_or_exited || true
	server_ready || {
		tail -n 15 "$APP_LOG"
		process_alive "$APP_RECORD" >/dev/null || die_with_log "app dev ended at once"
		die_with_log "app dev is not ready after 60s: $(curl -s -m 5 "$APP_URL/health/ready")"
	}
	printf '%s\n' "$fingerprint" >"$DEV/app.fingerprint"
	PHASE_NOTE="$APP_URL, pid $(process_alive "$APP_RECORD")"
}

server_up_or_exited() { process_gone "$APP_RECORD" || server_ready; }

die_with_log() {
	say "    the end of $APP_LOG:"
	tail -n 20 "$APP_LOG" | sed 's/^/    | /' >&9
	die "$1"
}

# The app drains after SIGTERM; SIGKILL follows after 65 seconds.
server_stop() {
	process_stop "$APP_RECORD" 65
	rm -f "$DEV/app.fingerprint"
}

# api METHOD PATH [BODY]: sets API_STATUS and API_BODY. curl reads the key from standard input,
# because every user of the machine can read command lines.
api() {
	local answer
	answer=$(printf 'header = "X-API-Key: %s"\n' "$APP_API_KEY" |
		curl -sS -m 60 -K - -X "$1" ${3:+-H 'Content-Type: application/json' -d "$3"} -w '\n%{http_code}' "$APP_URL$2") || true
	API_STATUS=${answer##*$'\n'} API_BODY=${answer%$'\n'*}
}

# Sets APP_API_KEY: the key of the last run if it is still valid, else a new one.
server_key() {
	local words
	APP_API_KEY=$(env_value APP_API_KEY)
	if [ -n "$APP_API_KEY" ]; then
		api GET '/instances?limit=1'
		[ "$API_STATUS" != 200 ] || {
			PHASE_NOTE="the key of the last run"
			env_write
			return
		}
	fi
	server_app
	APP_API_KEY=$("${APP_WITH[@]}" keys create --tenant dev --name "make-run-$(date +%s)" --scope admin)
	words=$(wc -w <<<"$APP_API_KEY")
	[ "$words" -eq 1 ] || die "app keys create printed $words words instead of a key"
	env_write
	PHASE_NOTE="tenant dev, in $ENV_FILE"
}
