# process.sh: starting processes in the background, and stopping only those.
#
# A record is a file with "pid, start time, boot": a pid alone may by now belong
# to somebody else, and such a process is never signalled.
#
# Sourced after place.sh.
# shellcheck shell=bash

# Field 22 of /proc/PID/stat, counted behind the command, which may hold blanks.
process_birth() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	read -r -a stat <<<"${stat##*) }"
	[ "${stat[0]}" != Z ] || return 1
	printf '%s %s' "${stat[19]}" "$(cat /proc/sys/kernel/random/boot_id)"
}

process_record() {
	local file=$1 pid=$2 birth
	birth=$(process_birth "$pid") || return 1
	printf '%s %s\n' "$pid" "$birth" >"$file"
}

# Prints the pid if the recorded process still lives.
process_alive() {
	local pid birth
	[ -s "$1" ] || return 1
	read -r pid birth <"$1"
	[ "$(process_birth "$pid")" = "$birth" ] && printf '%s' "$pid"
}

# spawn RECORD LOG COMMAND…: in a session of its own, without our terminal,
# locks and pipes: whoever reads our output sees its end when we end.
spawn() {
	local record=$1 log=$2 pid fd
	shift 2
	(
		for fd in /proc/self/fd/*; do
			fd=${fd##*/}
			[ "$fd" -le 2 ] || eval "exec $fd>&-"
		done
		cd /
		exec setsid "$@"
	) </dev/null >>"$log" 2>&1 &
	pid=$!
	disown "$pid"
	process_record "$record" "$pid" || true
}

# The same as root. Behind sudo the pid of our child is sudo's: the command's own
# is written down by the shell that becomes it.
spawn_root() {
	local record=$1 log=$2
	shift 2
	if [ "$(id -u)" -eq 0 ]; then
		spawn "$record" "$log" "$@"
	else
		: >"$record.new"
		# shellcheck disable=SC2016 # for the other shell
		spawn "$record" "$log" sudo -n sh -c 'echo $$ >"$0"; exec "$@"' "$record.new" "$@"
		wait_until 5 test -s "$record.new" || true
		process_record "$record" "$(cat "$record.new")" || true
		rm -f "$record.new"
	fi
}

# process_stop RECORD SECONDS: SIGTERM, SIGKILL when that was not enough.
process_stop() {
	local record=$1 patience=$2 pid
	if pid=$(process_alive "$record"); then
		signal TERM "$pid"
		if ! wait_until "$patience" process_gone "$record"; then
			signal KILL "$pid"
			wait_until 5 process_gone "$record" || die "process $pid of $record cannot be stopped"
		fi
	fi
	rm -f "$record"
}

process_gone() { ! process_alive "$1" >/dev/null; }

# Shells have a kill of their own; a small machine has no other.
signal() { kill "-$1" "$2" 2>/dev/null || as_root sh -c "kill -$1 $2" 2>/dev/null || true; }

# wait_until SECONDS COMMAND…
wait_until() {
	local end=$(($(now_ms) + $1 * 1000))
	shift
	while ! "$@" >/dev/null 2>&1; do
		(($(now_ms) < end)) || return 1
		sleep 0.1
	done
}
