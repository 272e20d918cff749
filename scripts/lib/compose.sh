# compose.sh: the whole system in containers, by the compose files of the checkout.
#
# Compose is `docker-compose` (1.29, or a 2 of that name), else `docker compose`. A private
# Docker engine is started where none runs, as for make run.
#
# Sourced after setup.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

COMPOSE_FILES=(-f docker-compose.yml -f docker-compose.scale.yml)

compose_install() {
	install_missing "$@" compose
	COMPOSE=(docker-compose)
	has docker-compose || COMPOSE=(docker compose)
	PHASE_NOTE=$("${COMPOSE[@]}" version --short)
}

# Sets where Docker is, for compose itself and for the socket that the worker mounts.
compose_docker() {
	docker_choose
	[ -n "$DOCKER_HOST" ] || die "no Docker: $DOCKER_REASON"
	case $DOCKER_HOST in
	unix://*) export APP_DOCKER_SOCKET=${APP_DOCKER_SOCKET:-${DOCKER_HOST#unix://}} ;;
	*) [ -n "${APP_DOCKER_SOCKET-}" ] || die "DOCKER_HOST=$DOCKER_HOST is no socket of this machine: set the one that the worker mounts there, APP_DOCKER_SOCKET=/var/run/docker.sock" ;;
	esac
}

compose() { "${COMPOSE[@]}" "${COMPOSE_FILES[@]}" "$@"; }

# compose_setup COMMAND…: the steps that up and down have in common. docker_join_group may run
# the command again.
compose_setup() {
	docker_join_group "$@"
	state_open "$DEV"
	lock_state
	setup_load_base
	local wanted=()
	! docker_needs_install || wanted+=(docker)
	phase install compose_install "${wanted[@]}"
	base_choose "$DEV"
	DOCKER_BASE=$BASE
	phase docker compose_docker
	cd "$ROOT" || exit
}
