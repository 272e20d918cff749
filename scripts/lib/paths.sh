# paths.sh: the directories, the users and the ports that the scripts use.
#
#   ROOT   the checkout
#   DEV    its state directory, .app/ (APP_DEV_DIR): dev.env and the app's log
#   STATE  DEV, or a directory below it (the tests have their own)
#   BASE   data and sockets of the private services. Normally this is STATE. It is a short
#          directory under /var/tmp when STATE's path is too long for a socket (107 bytes),
#          or when the user that Postgres runs as cannot enter it
#   DOCKER_BASE  the same for dockerd: one per checkout, shared by run and test
#
# Sourced after phase.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

# Daemons are in sbin, which is not on every user's PATH. Shells that read no profile lack
# rustup's directory. make's variables are unset, so that programs started here do not take
# part in the job control of the calling make.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
[ -z "${HOME-}" ] || PATH=$PATH:$HOME/.cargo/bin
export PATH
unset MAKEFLAGS MFLAGS MAKELEVEL CDPATH
umask 022

# The user that Postgres runs as. Empty: the calling user. Postgres refuses to run as root.
PG_USER=""
[ "$(id -u)" -ne 0 ] || PG_USER=postgres

# Sets AS_POSTGRES, the prefix that runs a command as PG_USER. Every program of the prefix
# calls exec, so that the pid stays the same. The prefix is empty for the calling user.
as_postgres() {
	AS_POSTGRES=()
	[ -z "$PG_USER" ] || AS_POSTGRES=(setpriv "--reuid=$PG_USER" "--regid=$(id -g "$PG_USER")" --init-groups
		env -u PGDATA -u PGPORT HOME=/)
}

DEV=${APP_DEV_DIR:-$ROOT/.app}
case $DEV in /*) ;; *) DEV=$ROOT/$DEV ;; esac
STATE=$DEV
ENV_FILE=$DEV/dev.env

# The longest path of a socket below BASE is
# BASE/docker/exec/containerd/containerd-debug.sock.ttrpc, 51 bytes.
SOCKET_LIMIT=107
LONGEST_SOCKET=51

# Creates a directory, or fails when another user owns it or it is a symbolic link.
own_directory() {
	mkdir -p "$1"
	if [ ! -O "$1" ] || [ -L "$1" ]; then
		die "$1 belongs to another user: set APP_DEV_DIR to a directory of your own"
	fi
	chmod 711 "$1"
}

base_short_path() {
	printf '/var/tmp/app-%s' "$(printf '%s' "$1" | sha256sum | cut -c 1-10)"
}

postgres_can_enter() {
	id "$PG_USER" >/dev/null 2>&1 || return 0 # without that user there is no private Postgres
	as_postgres
	"${AS_POSTGRES[@]}" test -x "$1"
}

# Sets BASE for a state directory. The choice is made once and stored in STATE/base.
# Called after the installation, which creates the postgres user.
base_choose() {
	local state=$1
	if [ -s "$state/base" ]; then
		BASE=$(cat "$state/base")
	elif ((${#state} + LONGEST_SOCKET > SOCKET_LIMIT)); then
		BASE=$(base_short_path "$state")
		say "    the path $state is too long for sockets: data and sockets are in $BASE"
	elif [ -n "$PG_USER" ] && ! postgres_can_enter "$state"; then
		BASE=$(base_short_path "$state")
		say "    the user $PG_USER cannot enter $state: data and sockets are in $BASE"
	else
		BASE=$state
	fi
	own_directory "$BASE"
	printf '%s\n' "$BASE" >"$state/base"
}

# Creates a state directory and sets STATE and LOGS. base_choose sets BASE later.
state_open() {
	STATE=$1
	own_directory "$STATE"
	LOGS=$STATE/log
	own_directory "$LOGS"
	chmod 700 "$LOGS"
}

# Takes the lock of the state directory: one command at a time per checkout.
lock_state() {
	exec 8>"$DEV/lock"
	flock -n 8 || die "another make run, test, stop or clean is using $DEV"
}

# Removes a directory. Mounts below it are unmounted first. The private dockerd leaves files
# that belong to root; these are removed as root.
remove_tree() {
	local dir=$1 mount
	[ -d "$dir" ] || return 0
	while read -r mount; do
		as_root umount -l "$(printf '%b' "$mount")" || true
	done < <(awk -v d="$dir/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
	rm -rf --one-file-system "$dir" 2>/dev/null || as_root rm -rf --one-file-system "$dir"
}

# port_free [PORT…]: prints the first of the ports on which no process of this host listens, or
# else a random one. Random ports are below the kernel's ephemeral ports and below the ports
# that the app publishes.
port_is_free() {
	! awk -v p="$(printf '%04X' "$1")" \
		'$4 == "0A" && substr($2, length($2) - 3) == p { found = 1 } END { exit !found }' \
		/proc/net/tcp /proc/net/tcp6 2>/dev/null
}

port_free() {
	local port
	for port in "$@"; do
		port_is_free "$port" && printf '%s' "$port" && return
	done
	while :; do
		port=$((3000 + RANDOM % 6000))
		port_is_free "$port" && printf '%s' "$port" && return
	done
}
