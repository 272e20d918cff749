# journey.sh: the demo request, from POST /instances to a page out of the
# container, with everything on the way shown.
#
# Sourced after server.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for other parts

# An instance called demo of an earlier run makes way.
journey_clear() {
	local id
	api GET '/instances?name=demo'
	[ "$API_STATUS" = 200 ] || die "GET /instances answered $API_STATUS: $API_BODY"
	for id in $(jq -r '.items[] | select(.name == "demo" and .status != "deleted") | .id' <<<"$API_BODY"); do
		api DELETE "/instances/$id"
		case $API_STATUS in 20? | 404 | 409) ;; *) die "DELETE /instances/$id answered $API_STATUS: $API_BODY" ;; esac
		wait_until 90 journey_gone "$id" || die "the demo of before is not gone after 90s: $API_BODY"
	done
	PHASE_NOTE=${id:+"removed $id"}
}

journey_gone() {
	api GET "/instances/$1"
	[ "$API_STATUS" = 404 ] || [ "$(jq -r .status <<<"$API_BODY" 2>/dev/null)" = deleted ]
}

journey_post() {
	api POST /instances "{\"name\":\"demo\",\"image\":\"$APP_DEMO_IMAGE\",\"ports\":[{\"container\":80}]}"
	[ "$API_STATUS" = 202 ] || die "POST /instances answered $API_STATUS: $API_BODY"
	JOB=$(jq -r .job_id <<<"$API_BODY")
	INSTANCE=$(jq -r .instance.id <<<"$API_BODY")
}

declare -A STEP_SHOWN=()

# Prints each step when its status changes, with how long it took.
journey_steps() {
	local name status from to detail took
	while IFS=$'\x1f' read -r name status from to detail; do
		[ "${STEP_SHOWN[$name]-}" != "$status" ] || continue
		STEP_SHOWN[$name]=$status
		[ "$status" != pending ] || continue
		took=""
		if [ -n "$from" ] && [ -n "$to" ]; then
			took=$(duration $(($(date -d "$to" +%s%3N) - $(date -d "$from" +%s%3N))))
		fi
		printf '    %-14s %-10s %8s  %s\n' "$name" "$status" "$took" "$detail" >&9
	done < <(jq -r '.steps[]? | [.name, .status, .started_at // "", .finished_at // "",
		(.detail // "" | if type == "string" then . else tojson end)] | join("\u001f")' <<<"$API_BODY")
}

journey_follow() {
	local status before="" began turn=0
	began=$(now_ms)
	while :; do
		api GET "/jobs/$JOB"
		[ "$API_STATUS" = 200 ] || die "GET /jobs/$JOB answered $API_STATUS: $API_BODY"
		status=$(jq -r .status <<<"$API_BODY")
		if [ "$status" != "$before" ] || ((++turn % 25 == 0)); then
			printf '    job %-10s %-10s %8s\n' "" "$status" "$(duration $(($(now_ms) - began)))" >&9
			before=$status
		fi
		journey_steps
		case $status in
		succeeded) break ;;
		queued | running) ;;
		*) die_with_log "the job ended as $status: $(jq -c .error <<<"$API_BODY")" ;;
		esac
		(($(now_ms) - began < 120000)) || die_with_log "the job is still $status after two minutes"
		sleep 0.2
	done
	api GET "/instances/$INSTANCE?wait=running&timeout=30"
	status=$(jq -r .status <<<"$API_BODY")
	[ "$status" = running ] || die_with_log "the instance is $status, not running"
	PORT=$(jq -r '.ports[0].host // empty' <<<"$API_BODY")
	[ -n "$PORT" ] || PORT=$(jq -r '.instance.ports[0].host // empty' <<<"$API_BODY")
}

journey_page_answers() { PAGE=$(curl -fsS -m 2 "http://127.0.0.1:$PORT/"); }

journey_page() {
	wait_until 10 journey_page_answers || die_with_log "no page from http://127.0.0.1:$PORT/ within 10s"
}

journey() {
	phase clear journey_clear
	phase_begin accepted "$APP_LOG"
	journey_post
	phase_end "202, job $JOB"
	phase_begin running "$APP_LOG"
	journey_follow
	phase_end "instance $INSTANCE"
	if [ "$COMPUTE_BACKEND" = simulated ]; then
		say "    no page is fetched: a simulated container has none"
		return
	fi
	phase_begin page "$APP_LOG"
	journey_page
	phase_end "http://127.0.0.1:$PORT/ says: ${PAGE%%$'\n'*}"
}

# Lines that work when pasted into any shell in any directory.
journey_farewell() {
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
