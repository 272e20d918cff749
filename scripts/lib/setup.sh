# setup.sh: brings a bare machine to Postgres, Redis, Docker and the demo image. Every verb
# sources it; it defines the order of the steps.
#
#   SCRIPTS  the verbs of the Makefile, one file each; they run daily
#   LIB      functions that the verbs share; they change only the state directory
#   MACHINE  code that runs as root and changes the machine, normally once: packages, and a
#            private Docker engine where none runs
#
# shellcheck shell=bash
# shellcheck disable=SC2034 # the sourced files use the variables

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
SCRIPTS=$(dirname "$LIB")
MACHINE=$SCRIPTS/machine
for part in "$LIB"/{phase,paths,process}.sh "$MACHINE"/{root,install}.sh "$LIB"/{postgres,redis}.sh "$MACHINE"/docker.sh "$LIB"/image.sh; do
	# shellcheck source=/dev/null
	. "$part"
done
unset part

# setup_install WANTED…: installs packages, then sets the directories that depend on them.
setup_install() {
	local wanted=("$@")
	! docker_needs_install || wanted+=(docker)
	[ "${COMPUTE_BACKEND-}" = simulated ] || wanted+=(demo)
	phase install install_missing "${wanted[@]}"
	base_choose "$DEV"
	DOCKER_BASE=$BASE
}

setup_docker() {
	phase docker docker_choose
	phase image image_prepare
	docker_or_fall_back
}

# Sets the directories of an earlier run, if there was one, before anything is installed.
setup_load_base() {
	BASE=$DEV
	[ ! -s "$DEV/base" ] || BASE=$(cat "$DEV/base")
	DOCKER_BASE=$BASE
}

# A variable that the caller set is used, except a value that comes from sourcing this
# checkout's own dev.env; such values are unset.
setup_unset_own() {
	setup_load_base
	[ "${DATABASE_URL-}" != "$(postgres_url app app)" ] || unset DATABASE_URL
	[ "${REDIS_URL-}" != "unix:$(redis_socket)" ] || unset REDIS_URL
	[ "${DOCKER_HOST-}" != "unix://$(docker_socket)" ] || unset DOCKER_HOST
}

# Starts the private services of one checkout, for run and env. DATABASE_URL and REDIS_URL of
# the caller are used instead.
setup_services() {
	local wanted=()
	lock_state
	setup_unset_own
	[ -n "${DATABASE_URL-}" ] || wanted+=(postgres)
	[ -n "${REDIS_URL-}" ] || wanted+=(redis)
	setup_install "${wanted[@]}"
	if [ -z "${DATABASE_URL-}" ]; then
		phase postgres postgres_start max_connections=300
		phase database postgres_app
		DATABASE_URL=$(postgres_url app app)
	fi
	if [ -z "${REDIS_URL-}" ]; then
		phase redis redis_start
		REDIS_URL=unix:$(redis_socket)
	fi
	setup_docker
}

# Removes the state directory at the end of a test or a measurement, unless make run or make up
# use it. The volumes of a private dockerd that still runs, even one that hangs, are kept.
state_remove_if_unused() {
	if [ ! -e "$ENV_FILE" ] && [ ! -e "$DEV/up" ] && process_gone "$DOCKER_BASE/dockerd.pid"; then
		remove_tree "$DOCKER_BASE"
		remove_tree "$DEV"
	fi
}
