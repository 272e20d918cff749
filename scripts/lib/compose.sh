# compose.sh: the whole system in containers, by the compose files of the checkout.
#
# Compose is `docker-compose` (1.29, or a 2 of that name) or else `docker compose`. A Docker
# of our own is started where none runs, as for make run.
#
# Sourced after setup.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for other parts

COMPOSE_FILES=(-f docker-compose.yml -f docker-compose.scale.yml)

compose_install() {
	install_missing "$@"
	if has docker-compose; then
		COMPOSE=(docker-compose)
	elif docker compose version >/dev/null 2>&1; then
		COMPOSE=(docker compose)
	else
		if ! may_root || ! has apt-get; then die "docker-compose not found: install compose 1.29 or later"; fi
		install_quietly docker-compose
		COMPOSE=(docker-compose)
	fi
	PHASE_NOTE=$("${COMPOSE[@]}" version --short)
}

# Where Docker is, for compose itself and for the worker's mount.
compose_docker() {
	docker_choose
	[ -n "$DOCKER_HOST" ] || die "no Docker: $DOCKER_REASON"
	case $DOCKER_HOST in
	unix://*) export APP_DOCKER_SOCKET=${APP_DOCKER_SOCKET:-${DOCKER_HOST#unix://}} ;;
	*) [ -n "${APP_DOCKER_SOCKET-}" ] || die "DOCKER_HOST=$DOCKER_HOST: say which socket the worker gets there, APP_DOCKER_SOCKET=/var/run/docker.sock" ;;
	esac
}

compose() { "${COMPOSE[@]}" "${COMPOSE_FILES[@]}" "$@"; }

# compose_open COMMAND…: what up and down begin with.
compose_open() {
	docker_join_group "$@"
	state_open "$DEV"
	only_one
	setup_recall
	local wanted=()
	! docker_wanted || wanted+=(docker)
	phase install compose_install "${wanted[@]}"
	base_choose "$DEV"
	DOCKER_BASE=$BASE
	phase docker compose_docker
	cd "$ROOT" || exit
}
