# setup.sh: from a bare machine to Postgres, Redis, Docker and the demo image.
# What run and test share, and the one place that says in which order things go.
#
#   SCRIPTS  the verbs of the Makefile, one file each
#   LIB      what they source; what it changes is in the state directory
#   MACHINE  what needs root and changes the machine: packages (for all verbs), a Docker engine of our own
#
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for the parts

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
SCRIPTS=$(dirname "$LIB")
MACHINE=$SCRIPTS/machine
for part in "$LIB"/{phase,place,process}.sh "$MACHINE"/install.sh "$LIB"/{postgres,redis}.sh "$MACHINE"/docker.sh "$LIB"/image.sh; do
	# shellcheck source=/dev/null
	. "$part"
done
unset part

# setup_install WANTED…: packages, then the places that depend on them.
setup_install() {
	local wanted=("$@")
	! docker_wanted || wanted+=(docker)
	[ "${COMPUTE_BACKEND-}" = simulated ] || wanted+=(demo)
	phase install install_missing "${wanted[@]}"
	base_choose "$DEV"
	DOCKER_BASE=$BASE
}

setup_docker() {
	phase docker docker_choose
	phase image image_prepare
	docker_or_simulated
}

# Before anything is set up: the directories of an earlier run, if there was one.
setup_recall() {
	BASE=$DEV
	[ ! -s "$DEV/base" ] || BASE=$(cat "$DEV/base")
	DOCKER_BASE=$BASE
}

# A variable of the caller's counts as given unless it is our own, from a
# sourced dev.env.
setup_forget_own() {
	setup_recall
	[ "${DATABASE_URL-}" != "$(postgres_url app app)" ] || unset DATABASE_URL
	[ "${REDIS_URL-}" != "unix:$(redis_socket)" ] || unset REDIS_URL
	[ "${DOCKER_HOST-}" != "unix://$(docker_socket)" ] || unset DOCKER_HOST
}

# The private services of one checkout, for run and env. What is given is used.
setup_services() {
	local wanted=()
	only_one
	setup_forget_own
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
