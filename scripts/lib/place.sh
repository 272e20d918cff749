# place.sh: where everything lives, and who we are.
#
#   ROOT   the checkout
#   DEV    its state directory, .app/ (APP_DEV_DIR): dev.env, the app's log
#   STATE  DEV, or a directory below it (the tests have their own)
#   BASE   data and sockets of the private services. Normally STATE; a short
#          directory under /var/tmp where STATE's path is too long for a socket
#          (107 bytes) or not reachable for the user that Postgres runs as
#   DOCKER_BASE  the same for dockerd: one per checkout, shared by run and test
#
# Sourced after phase.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the variables are for those who source this

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

# Daemons live in sbin, which is not on everybody's PATH; rustup's directory is
# missing in shells that read no profile. What these scripts start is no part of
# make's own job control.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
[ -z "${HOME-}" ] || PATH=$PATH:$HOME/.cargo/bin
export PATH
unset MAKEFLAGS MFLAGS MAKELEVEL CDPATH
umask 022

if [ "$(id -u)" -eq 0 ]; then
	SUDO=()
	PG_USER=postgres # Postgres refuses to run as root
else
	SUDO=(sudo -n)
	PG_USER=""
fi

# Root, or sudo without a password?
may_root() {
	[ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

as_root() { "${SUDO[@]}" "$@"; }

# The prefix that makes a command run as the user Postgres runs as. All of it is
# exec, so that the pid stays the same. Empty when we are that user.
as_postgres() {
	AS_POSTGRES=()
	[ -z "$PG_USER" ] || AS_POSTGRES=(setpriv "--reuid=$PG_USER" "--regid=$(id -g "$PG_USER")" --init-groups
		env -u PGDATA -u PGPORT HOME=/)
}

DEV=${APP_DEV_DIR:-$ROOT/.app}
case $DEV in /*) ;; *) DEV=$ROOT/$DEV ;; esac
STATE=$DEV
ENV_FILE=$DEV/dev.env

# The longest socket below BASE is
# BASE/docker/exec/containerd/containerd-debug.sock.ttrpc, 51 bytes.
SOCKET_LIMIT=107
LONGEST_SOCKET=51

# Creates a directory of ours, or refuses one that somebody else put there.
own_directory() {
	mkdir -p "$1"
	if [ ! -O "$1" ] || [ -L "$1" ]; then
		die "$1 belongs to somebody else: set APP_DEV_DIR to a directory of your own"
	fi
	chmod 711 "$1"
}

base_elsewhere() {
	printf '/var/tmp/app-%s' "$(printf '%s' "$1" | sha256sum | cut -c 1-10)"
}

reachable_for_postgres() {
	id "$PG_USER" >/dev/null 2>&1 || return 0 # no such user: no Postgres of ours either
	as_postgres
	"${AS_POSTGRES[@]}" test -x "$1"
}

# Sets BASE for a state directory; decided once, then remembered in STATE/base.
# Needs the postgres user, so it comes after the installation.
base_choose() {
	local state=$1
	if [ -s "$state/base" ]; then
		BASE=$(cat "$state/base")
	elif ((${#state} + LONGEST_SOCKET > SOCKET_LIMIT)); then
		BASE=$(base_elsewhere "$state")
		say "    $state is too long a path for sockets: data and sockets are in $BASE"
	elif [ -n "$PG_USER" ] && ! reachable_for_postgres "$state"; then
		BASE=$(base_elsewhere "$state")
		say "    $state is not reachable for the user $PG_USER: data and sockets are in $BASE"
	else
		BASE=$state
	fi
	own_directory "$BASE"
	printf '%s\n' "$BASE" >"$state/base"
}

# Opens a state directory: STATE, LOGS. BASE follows with base_choose.
state_open() {
	STATE=$1
	own_directory "$STATE"
	LOGS=$STATE/log
	own_directory "$LOGS"
	chmod 700 "$LOGS"
}

# One such command at a time per checkout.
only_one() {
	exec 8>"$DEV/lock"
	flock -n 8 || die "another make run, test, stop or clean is at work on $DEV"
}

# Everything below a directory of ours goes, mounts first. dockerd leaves files
# of root's.
remove_tree() {
	local dir=$1 mount
	[ -d "$dir" ] || return 0
	while read -r mount; do
		as_root umount -l "$(printf '%b' "$mount")" || true
	done < <(awk -v d="$dir/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
	rm -rf --one-file-system "$dir" 2>/dev/null || as_root rm -rf --one-file-system "$dir"
}

# A free TCP port on this host, the wished-for one if possible. Random ones are
# below the kernel's ephemeral ports and below those the app publishes.
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
