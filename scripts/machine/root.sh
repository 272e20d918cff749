# root.sh: the only way by which a script becomes root. `git grep as_root` lists every use.
#
# It is used to install packages (install.sh), to run the private Docker engine (docker.sh), to
# remove files and processes that this engine left, and, where no registry can be reached, to
# build the images of the stack test (tests/stack/images/).
#
# Sourced after process.sh.
# shellcheck shell=bash

SUDO=(sudo -n)
[ "$(id -u)" -ne 0 ] || SUDO=()

# Succeeds for root, and where sudo needs no password.
may_root() {
	[ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

as_root() { "${SUDO[@]}" "$@"; }

# spawn_root RECORD LOG COMMAND…: like spawn, as root. The child of this shell is sudo, so the
# shell that becomes the command writes its own pid.
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
