# phase.sh: the output on the terminal. A phase is a named step: it prints progress while it
# runs and its duration at the end. When it fails, its name and the end of its log are shown.
#
# Sourced. File descriptor 9 is the terminal, also inside a phase whose own output goes to a
# log.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file set PHASE_NOTE

exec 9>&2

PHASE_NAMES=()
PHASE_TIMES=()
phase_open="" phase_log="" phase_started_at="" phase_ticker=""

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

# Prints a conspicuous warning; the script continues.
warn() { printf '\n!!! %s\n\n' "$*" >&9; }

die() {
	phase_stop_ticker
	phase_open="" # the message is enough: phase_failed then shows no log
	printf 'error: %s\n' "$*" >&9
	exit 1
}

phase_begin() {
	phase_open=$1 phase_log=${2-} phase_started_at=$(now_ms)
}

phase_end() {
	local elapsed=$(($(now_ms) - phase_started_at))
	phase_stop_ticker
	PHASE_NAMES+=("$phase_open")
	PHASE_TIMES+=("$elapsed")
	printf '==> %-10s %s\n' "$phase_open" "${1:+$1, }$(duration "$elapsed")" >&9
	phase_open=""
}

# Prints every five seconds the phase, its duration so far, and the last line of its log.
phase_print_progress() {
	local name=$1 log=$2 started=$3 never
	# read -t instead of sleep: a child would outlive this shell and keep the terminal's pipe open.
	exec {never}<> <(:)
	while ! read -r -t 5 -u "$never"; do
		printf '    %-10s … %s  %s\n' "$name" "$(duration $(($(now_ms) - started)))" \
			"$(tail -n 1 "$log" 2>/dev/null | cut -c 1-100)" >&9
	done
}

phase_stop_ticker() {
	[ -n "$phase_ticker" ] || return 0
	kill "$phase_ticker" 2>/dev/null || true
	wait "$phase_ticker" 2>/dev/null || true
	phase_ticker=""
}

# phase NAME COMMAND…: runs a command with its output in a log under $LOGS. It runs in this
# shell, so that it can set variables; PHASE_NOTE is printed beside the duration.
phase() {
	local name=$1
	shift
	PHASE_NOTE=""
	phase_begin "$name" "$LOGS/phase-$name.log"
	: >"$phase_log"
	phase_print_progress "$name" "$phase_log" "$phase_started_at" </dev/null >/dev/null 2>&1 &
	phase_ticker=$!
	"$@" </dev/null >>"$phase_log" 2>&1
	phase_end "$PHASE_NOTE"
}

# phase_shown NAME COMMAND…: the same for a command that shows its own progress (cargo).
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

# Reports the phase that failed. An EXIT trap calls it with $? of the script.
phase_failed() {
	phase_stop_ticker
	if [ "$1" -ne 0 ] && [ -n "$phase_open" ]; then
		printf '==> %-10s FAILED after %s\n' "$phase_open" \
			"$(duration $(($(now_ms) - phase_started_at)))" >&9
		if [ -n "$phase_log" ] && [ -s "$phase_log" ]; then
			printf '    the end of %s:\n' "$phase_log" >&9
			tail -n 15 "$phase_log" | sed 's/^/    | /' >&9
		fi
	fi
}
