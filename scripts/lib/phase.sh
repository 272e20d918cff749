# phase.sh: what the person at the terminal sees. A phase is a named step with a
# time: it is announced, shows a sign of life while it lasts, and says how long
# it took. When something fails, the phase and the end of its log are shown.
#
# Sourced. File descriptor 9 is the terminal, also inside a phase whose own
# output goes to a log.
# shellcheck shell=bash
# shellcheck disable=SC2034 # PHASE_NOTE is for those who source this

exec 9>&2

PHASE_NAMES=()
PHASE_TIMES=()
phase_open="" phase_log="" phase_began="" phase_ticker=""

now_ms() { date +%s%3N; }

# 1234 -> 1.2s, 83000 -> 1m23s
duration() {
	local ms=$1
	if ((ms < 100)); then
		printf '%dms' "$ms"
	elif ((ms < 60000)); then
		printf '%d.%ds' $((ms / 1000)) $((ms % 1000 / 100))
	else
		printf '%dm%02ds' $((ms / 60000)) $((ms % 60000 / 1000))
	fi
}

say() { printf '%s\n' "$*" >&9; }

# One loud line: something is not as one would wish, and the journey goes on.
loud() { printf '\n!!! %s\n\n' "$*" >&9; }

die() {
	phase_still
	phase_open="" # the message says it all; no log tail on top of it
	printf 'error: %s\n' "$*" >&9
	exit 1
}

phase_begin() {
	phase_open=$1 phase_log=${2-} phase_began=$(now_ms)
}

phase_end() {
	local spent=$(($(now_ms) - phase_began))
	phase_still
	PHASE_NAMES+=("$phase_open")
	PHASE_TIMES+=("$spent")
	printf '==> %-10s %s\n' "$phase_open" "${1:+$1, }$(duration "$spent")" >&9
	phase_open=""
}

# Every five seconds: which phase, for how long, and the last line of its log.
phase_alive() {
	local name=$1 log=$2 began=$3 never
	# Waits without a child: a sleep would outlive us and keep the terminal's pipe open.
	exec {never}<> <(:)
	while ! read -r -t 5 -u "$never"; do
		printf '    %-10s … %s  %s\n' "$name" "$(duration $(($(now_ms) - began)))" \
			"$(tail -n 1 "$log" 2>/dev/null | cut -c 1-100)" >&9
	done
}

phase_still() {
	[ -n "$phase_ticker" ] || return 0
	kill "$phase_ticker" 2>/dev/null || true
	wait "$phase_ticker" 2>/dev/null || true
	phase_ticker=""
}

# phase NAME COMMAND…: quiet, into a log under $LOGS. The command runs in this
# shell, so that it can set variables; PHASE_NOTE is what it has to say.
phase() {
	local name=$1
	shift
	PHASE_NOTE=""
	phase_begin "$name" "$LOGS/phase-$name.log"
	: >"$phase_log"
	phase_alive "$name" "$phase_log" "$phase_began" </dev/null >/dev/null 2>&1 &
	phase_ticker=$!
	"$@" </dev/null >>"$phase_log" 2>&1
	phase_end "$PHASE_NOTE"
}

# phase_shown NAME COMMAND…: for commands that show their own progress (cargo).
phase_shown() {
	local name=$1
	shift
	phase_begin "$name"
	printf '==> %-10s %s\n' "$name" "$*" >&9
	"$@"
	phase_end
}

phase_table() {
	local i sum=0
	say ""
	for i in "${!PHASE_NAMES[@]}"; do
		printf '    %-10s %8s\n' "${PHASE_NAMES[i]}" "$(duration "${PHASE_TIMES[i]}")" >&9
		((sum += PHASE_TIMES[i])) || true
	done
	printf '    %-10s %8s\n' total "$(duration "$sum")" >&9
}

# Call first from an EXIT trap, with $?.
phase_failed() {
	phase_still
	if [ "$1" -ne 0 ] && [ -n "$phase_open" ]; then
		printf '==> %-10s FAILED after %s\n' "$phase_open" \
			"$(duration $(($(now_ms) - phase_began)))" >&9
		if [ -n "$phase_log" ] && [ -s "$phase_log" ]; then
			printf '    the end of %s:\n' "$phase_log" >&9
			tail -n 15 "$phase_log" | sed 's/^/    | /' >&9
		fi
	fi
}
