# demo.sh: the demo request of make run, from POST /instances to a page that the container
# serves. Every step of the job is shown.
#
# Sourced after server.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

# Deletes the instance demo of an earlier run.
demo_delete_previous() {
	local id
	api GET '/instances?name=demo'
	[ "$API_STATUS" = 200 ] || die "GET /instances answered $API_STATUS: $API_BODY"
	for id in $(jq -r '.items[] | select(.name == "demo" and .status != "deleted") | .id' <<<"$API_BODY"); do
		api DELETE "/instances/$id"
		case $API_STATUS in 20? | 404 | 409) ;; *) die "DELETE /instances/$id answered $API_STATUS: $API_BODY" ;; esac
		wait_until 90 demo_is_deleted "$id" || die "the demo instance of an earlier run is not deleted after 90s: $API_BODY"
	done
	PHASE_NOTE=${id:+"removed $id"}
}

demo_is_deleted() {
	api GET "/instances/$1"
	[ "$API_STATUS" = 404 ] || [ "$(jq -r .status <<<"$API_BODY" 2>/dev/null)" = deleted ]
}

demo_create() {
	api POST /instances "{\"name\":\"demo\",\"image\":\"$APP_DEMO_IMAGE\",\"ports\":[{\"container\":80}]}"
	[ "$API_STATUS" = 202 ] || die "POST /instances answered $API_STATUS: $API_BODY"
	JOB=$(jq -r .job_id <<<"$API_BODY")
	INSTANCE=$(jq -r .instance.id <<<"$API_BODY")
}

declare -A DEMO_STEP_STATUS=()

# Prints each step when its status changes, with its duration.
demo_print_steps() {
	local name status from to detail took
	while IFS=$'\x1f' read -r name status from to detail; do
		[ "${DEMO_STEP_STATUS[$name]-}" != "$status" ] || continue
		DEMO_STEP_STATUS[$name]=$status
		[ "$status" != pending ] || continue
		took=""
		if [ -n "$from" ] && [ -n "$to" ]; then
			took=$(duration $(($(date -d "$to" +%s%3N) - $(date -d "$from" +%s%3N))))
		fi
		printf '    %-14s %-10s %8s  %s\n' "$name" "$status" "$took" "$detail" >&9
	done < <(jq -r '.steps[]? | [.name, .status, .started_at // "", .finished_at // "",
		(.detail // "" | if type == "string" then . else tojson end)] | join("\u001f")' <<<"$API_BODY")
}

demo_follow_job() {
	local status before="" started polls=0
	started=$(now_ms)
	while :; do
		api GET "/jobs/$JOB"
		[ "$API_STATUS" = 200 ] || die "GET /jobs/$JOB answered $API_STATUS: $API_BODY"
		status=$(jq -r .status <<<"$API_BODY")
		if [ "$status" != "$before" ] || ((++polls % 25 == 0)); then
			printf '    job %-10s %-10s %8s\n' "" "$status" "$(duration $(($(now_ms) - started)))" >&9
			before=$status
		fi
		demo_print_steps
		case $status in
		succeeded) break ;;
		queued | running) ;;
		*) die_with_log "the job ended as $status: $(jq -c .error <<<"$API_BODY")" ;;
		esac
		(($(now_ms) - started < 120000)) || die_with_log "the job is still $status after two minutes"
		sleep 0.2
	done
	api GET "/instances/$INSTANCE?wait=running&timeout=30"
	status=$(jq -r .status <<<"$API_BODY")
	[ "$status" = running ] || die_with_log "the instance is $status, not running"
	PORT=$(jq -r '.ports[0].host // empty' <<<"$API_BODY")
	[ -n "$PORT" ] || PORT=$(jq -r '.instance.ports[0].host // empty' <<<"$API_BODY")
}

demo_fetch_page() { PAGE=$(curl -fsS -m 2 "http://127.0.0.1:$PORT/"); }

demo_wait_for_page() {
	wait_until 10 demo_fetch_page || die_with_log "http://127.0.0.1:$PORT/ served no page within 10s"
}

demo_run() {
	phase clear demo_delete_previous
	phase_begin accepted "$APP_LOG"
	demo_create
	phase_end "202, job $JOB"
	phase_begin running "$APP_LOG"
	demo_follow_job
	phase_end "instance $INSTANCE"
	if [ "$COMPUTE_BACKEND" = simulated ]; then
		say "    no page is fetched: a simulated container serves none"
		return
	fi
	phase_begin page "$APP_LOG"
	demo_wait_for_page
	phase_end "http://127.0.0.1:$PORT/ serves: ${PAGE%%$'\n'*}"
}

# Prints commands that work in any shell and any directory.
demo_print_summary() {
	local env
	env=$(printf '%q' "$ENV_FILE")
	phase_table
	cat >&9 <<-TEXT

		    It runs:  $APP_URL${PORT:+   (the demo page: http://127.0.0.1:$PORT/)}
		    The key:  $ENV_FILE (APP_API_KEY)
		    Next:     make logs, make stop, make clean

		. $env; curl -s -H "X-API-Key: \$APP_API_KEY" "\$APP_URL/instances"
		. $env; curl -s -H "X-API-Key: \$APP_API_KEY" -H 'Content-Type: application/json' -d '{"name":"hello-'\$(date +%s)'","image":"'\$APP_DEMO_IMAGE'","ports":[{"container":80}]}' "\$APP_URL/instances"
		. $env; curl -s -X DELETE -H "X-API-Key: \$APP_API_KEY" "\$APP_URL/instances/$INSTANCE"
	TEXT
}
