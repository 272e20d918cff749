# process.sh: starts processes in the background, and stops exactly those.
#
# A record is a file with pid, start time and boot id. The kernel reuses pids: a process is
# only signalled when its start time and boot id match the record.
#
# Sourced after paths.sh.
# shellcheck shell=bash

# Prints a process's start time and the boot id. The start time is field 22 of
# /proc/PID/stat, counted from the end of the command, which may contain blanks.
process_start_time() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	read -r -a stat <<<"${stat##*) }"
	[ "${stat[0]}" != Z ] || return 1
	printf '%s %s' "${stat[19]}" "$(cat /proc/sys/kernel/random/boot_id)"
}

process_record() {
	local file=$1 pid=$2 start
	start=$(process_start_time "$pid") || return 1
	printf '%s %s\n' "$pid" "$start" >"$file"
}

# Prints the pid if the recorded process is still running.
process_alive() {
	local pid start
	[ -s "$1" ] || return 1
	read -r pid start <"$1"
	[ "$(process_start_time "$pid")" = "$start" ] && printf '%s' "$pid"
}

# spawn RECORD LOG COMMAND…: runs a command in a session of its own, without this shell's
# terminal, locks and pipes. So a reader of this script's output sees its end when it exits.
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

# process_stop RECORD SECONDS: sends SIGTERM, and SIGKILL after that many seconds.
process_stop() {
	local record=$1 timeout=$2 pid
	if pid=$(process_alive "$record"); then
		signal TERM "$pid"
		if ! wait_until "$timeout" process_gone "$record"; then
			signal KILL "$pid"
			wait_until 5 process_gone "$record" || die "process $pid of $record cannot be stopped"
		fi
	fi
	rm -f "$record"
}

process_gone() { ! process_alive "$1" >/dev/null; }

# The shell's builtin kill: minimal machines have no /bin/kill.
signal() { kill "-$1" "$2" 2>/dev/null || as_root sh -c "kill -$1 $2" 2>/dev/null || true; }

# wait_until SECONDS COMMAND…: runs the command until it succeeds; fails after that time.
wait_until() {
	local end=$(($(now_ms) + $1 * 1000))
	shift
	while ! "$@" >/dev/null 2>&1; do
		(($(now_ms) < end)) || return 1
		sleep 0.1
	done
}
