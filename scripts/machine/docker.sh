# docker.sh: which Docker we use, and a private dockerd where none runs.
#
# Ours has everything of its own under DOCKER_BASE/docker: data, sockets,
# configuration, containerd, and a bridge. It leaves docker0, /etc/docker and a
# containerd of the machine's alone. Two dockerds on one machine still share
# iptables' DOCKER chains, so a running one is always preferred.
#
# After docker_choose: DOCKER_HOST, or DOCKER_REASON why there is none.
#
# Sourced after install.sh, process.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for other parts

DOCKER_REASON=""
DOCKER_OURS=""

docker_socket() { printf '%s' "$DOCKER_BASE/docker/docker.sock"; }

# Interface names end at 15 characters.
docker_bridge() { printf 'appbr-%s' "$(printf '%s' "$DOCKER_BASE" | sha256sum | cut -c 1-8)"; }

# docker_answers HOST
docker_answers() {
	case $1 in
	"") return 1 ;;
	unix://*) [ "$(curl -s -m 5 --unix-socket "${1#unix://}" http://docker/_ping)" = OK ] ;;
	*) DOCKER_HOST=$1 timeout 10 docker version >/dev/null 2>&1 ;;
	esac
}

docker_ours_runs() {
	process_alive "$DOCKER_BASE/dockerd.pid" >/dev/null && docker_answers "unix://$(docker_socket)"
}

# The machine's own Docker, or the user's rootless one. Prints its DOCKER_HOST.
docker_found() {
	local socket
	for socket in /var/run/docker.sock "${XDG_RUNTIME_DIR:-/nonexistent}/docker.sock"; do
		if docker_answers "unix://$socket"; then
			printf 'unix://%s' "$socket"
			return
		fi
	done
	return 1
}

# Docker runs, but its socket is for a group that we are not in, and we may use
# sudo: take that group for this command, which is what a new login after
# `usermod -aG docker` would do, and change nothing on the machine.
docker_join_group() {
	local socket=/var/run/docker.sock
	[ -S "$socket" ] && [ ! -w "$socket" ] && [ -z "${DOCKER_HOST-}" ] && [ -z "${APP_JOINED_GROUP-}" ] || return 0
	[ "$(id -u)" -ne 0 ] && may_root || return 0
	exec sudo -n -E env "PATH=$PATH" "HOME=$HOME" "USER=$(id -un)" "LOGNAME=$(id -un)" APP_JOINED_GROUP=yes \
		setpriv "--reuid=$(id -u)" "--regid=$(id -g)" \
		"--groups=$(id -G | tr ' ' ,),$(stat -c %g "$socket")" -- "$@"
}

# Does the engine have to be installed? Without curl nothing can be asked yet: a
# socket then counts as a Docker.
docker_wanted() {
	[ "${COMPUTE_BACKEND-}" != simulated ] && [ -z "${DOCKER_HOST-}" ] && may_root || return 1
	if has curl; then ! docker_found >/dev/null; else [ ! -S /var/run/docker.sock ]; fi
}

docker_choose() {
	local given=${DOCKER_HOST-}
	[ "$given" != "unix://$(docker_socket)" ] || given="" # from a sourced dev.env
	unset DOCKER_CONTEXT
	export DOCKER_HOST=""
	if [ "${COMPUTE_BACKEND-}" = simulated ]; then
		DOCKER_REASON="COMPUTE_BACKEND=simulated was asked for"
		PHASE_NOTE="not used"
		return
	fi
	if [ -n "$given" ]; then
		docker_answers "$given" || die "DOCKER_HOST=$given does not answer: start that Docker, or unset DOCKER_HOST"
		DOCKER_HOST=$given
	elif docker_ours_runs; then
		DOCKER_HOST="unix://$(docker_socket)" DOCKER_OURS=yes
	elif DOCKER_HOST=$(docker_found); then
		:
	elif [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
		DOCKER_REASON="/var/run/docker.sock is not open to $(id -un): join its group (sudo usermod -aG docker $(id -un)) and log in again"
	elif ! may_root; then
		DOCKER_REASON="no Docker runs here, and starting one needs root: start Docker, or allow $(id -un) sudo without a password"
	else
		docker_start && DOCKER_HOST="unix://$(docker_socket)" DOCKER_OURS=yes
	fi
	if [ -n "$DOCKER_HOST" ]; then
		PHASE_NOTE="engine $(docker version -f '{{.Server.Version}}')${DOCKER_OURS:+, our own}"
	else
		PHASE_NOTE="cannot run here"
	fi
}

docker_start() {
	local dir=$DOCKER_BASE/docker bridge log=$DEV/log/dockerd.log other
	bridge=$(docker_bridge)
	if other=$(docker_other); then
		say "    another dockerd runs here (pid $other): starting ours resets the iptables rules of the ports it publishes; DOCKER_HOST=… would use that one instead"
	fi
	# What a predecessor that was killed left running.
	process_stop "$DOCKER_BASE/dockerd.pid" 30
	process_stop "$DOCKER_BASE/containerd.pid" 10
	docker_sweep
	mkdir -p "$dir"
	rm -f "$dir/docker.pid" "$dir/docker.sock"
	: >"$log"
	docker_netfilter_remember
	ip link show "$bridge" >/dev/null 2>&1 || as_root ip link add "$bridge" type bridge || {
		DOCKER_REASON="no network bridge can be created here (not enough privileges)"
		return 1
	}
	# A configuration of its own: /etc/docker/daemon.json is somebody else's.
	printf '{}\n' >"$dir/daemon.json"
	cat >"$dir/containerd.toml" <<-TOML
		version = 2
		root = "$dir/containerd"
		state = "$dir/exec/containerd"
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[grpc]
		  address = "$dir/exec/containerd.sock"
	TOML
	as_root mkdir -p "$dir/exec"
	spawn_root "$DOCKER_BASE/containerd.pid" "$DEV/log/containerd.log" containerd --config "$dir/containerd.toml"
	if ! wait_until 20 as_root test -S "$dir/exec/containerd.sock"; then
		DOCKER_REASON="containerd did not start: $(tail -n 1 "$DEV/log/containerd.log")"
		docker_stop
		return 1
	fi
	spawn_root "$DOCKER_BASE/dockerd.pid" "$log" dockerd \
		--config-file "$dir/daemon.json" --containerd "$dir/exec/containerd.sock" \
		--data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" \
		--host "unix://$(docker_socket)" --group "$(id -g)" \
		--bridge "$bridge" --shutdown-timeout 5
	wait_until 60 docker_settled || true
	if ! docker_ours_runs; then
		DOCKER_REASON="dockerd did not start: $(docker_last_error "$log")"
		docker_stop
		return 1
	fi
}

docker_settled() { process_gone "$DOCKER_BASE/dockerd.pid" || docker_ours_runs; }

docker_last_error() {
	local line message
	line=$(grep -iE 'failed|level=(error|fatal)' "$1" | tail -n 1)
	[ -n "$line" ] || line=$(tail -n 1 "$1")
	message=${line##*msg=\"}
	printf '%.300s' "${message%\"}"
}

# Can this Docker run a container on a network? DOCKER_REASON if not.
docker_probe() {
	local image=$1 name said
	[ -n "$DOCKER_HOST" ] || return 0
	name=app-probe-$$
	if ! said=$({ docker network create "$name" && docker run --rm --network "$name" "$image" true; } 2>&1); then
		DOCKER_REASON="Docker answers but runs no container: $(grep -v '^$' <<<"$said" | tail -n 1)"
	fi
	docker network rm "$name" >/dev/null 2>&1 || true
	[ -z "$DOCKER_REASON" ] || DOCKER_HOST=""
}

# A dockerd in our network namespace that is not ours. Prints its pid.
docker_other() {
	local comm pid ours
	ours=$(process_alive "$DOCKER_BASE/dockerd.pid" || true)
	for comm in /proc/[0-9]*/comm; do
		[ "$(cat "$comm" 2>/dev/null)" = dockerd ] || continue
		pid=${comm#/proc/} pid=${pid%/comm}
		[ "$pid" != "$ours" ] || continue
		[ "$(as_root readlink "/proc/$pid/ns/net")" = "$(readlink /proc/self/ns/net)" ] || continue
		printf '%s' "$pid"
		return
	done
	return 1
}

# Leaves nothing running: containers first, for they outlive a dockerd that is killed.
docker_stop() {
	local bridges=() bridge
	process_stop "$DOCKER_BASE/dockerd.pid" 30
	process_stop "$DOCKER_BASE/containerd.pid" 10
	docker_sweep
	# It leaves its bridges behind, and creates them again when it starts. The names
	# come from its records, which are there when it was killed, too.
	mapfile -t bridges < <(
		docker_bridge && echo
		as_root grep -aoE '"BridgeName":"[^"]+"' "$DOCKER_BASE/docker/data/network/files/local-kv.db" 2>/dev/null |
			cut -d '"' -f 4 | grep -vx docker0 | sort -u
	)
	for bridge in "${bridges[@]}"; do
		! ip link show "$bridge" >/dev/null 2>&1 || as_root ip link del "$bridge" || true
	done
	docker_netfilter_restore "${bridges[@]}"
}

# What a test or a measurement ends with: nothing of make run and of make up here, then
# nothing is here at all. A dockerd that runs, even one that hangs, has somebody's volumes.
state_leave() {
	if [ ! -e "$ENV_FILE" ] && [ ! -e "$DEV/up" ] && process_gone "$DOCKER_BASE/dockerd.pid"; then
		remove_tree "$DOCKER_BASE"
		remove_tree "$DEV"
	fi
}

# Shims and containers of our containerd, known by its socket in their command
# line; only when the daemons are gone.
docker_sweep() {
	local cmdline pid child
	docker_ours_runs && return
	for cmdline in /proc/[0-9]*/cmdline; do
		tr '\0' ' ' <"$cmdline" 2>/dev/null | grep -qF -- "containerd-shim" || continue
		tr '\0' ' ' <"$cmdline" 2>/dev/null | grep -qF -- "-address $DOCKER_BASE/docker/exec/" || continue
		pid=${cmdline#/proc/} pid=${pid%/cmdline}
		for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid"; do
			signal KILL "$child"
		done
	done
}

# dockerd never takes its rules away, and sets the policy of FORWARD to DROP.
# What names our bridges goes; its chains go as well where there were none before
# us and no other dockerd needs them.
docker_netfilter_remember() {
	local before=$DOCKER_BASE/netfilter
	[ ! -e "$before" ] || return 0
	if docker_other >/dev/null || as_root iptables-save 2>/dev/null | grep -q '^:DOCKER'; then
		echo theirs >"$before"
	else
		as_root iptables-save -t filter 2>/dev/null | sed -n 's/^:FORWARD \([A-Z]*\).*/\1/p' >"$before"
	fi
}

# docker_netfilter_restore BRIDGE…
docker_netfilter_restore() {
	local before=$DOCKER_BASE/netfilter policy tool table chain
	[ -e "$before" ] || return 0
	policy=$(cat "$before")
	rm -f "$before"
	! docker_other >/dev/null || policy=theirs
	for tool in iptables ip6tables; do
		for table in raw mangle nat filter; do
			docker_rules_drop "$tool" "$table" "$(printf ' %s |' "$@")%"
			[ "$policy" != theirs ] || continue
			docker_rules_drop "$tool" "$table" ' -j DOCKER|^-A DOCKER'
			for chain in $(as_root "$tool-save" -t "$table" 2>/dev/null | sed -n 's/^:\(DOCKER[^ ]*\).*/\1/p'); do
				as_root "$tool" -w -t "$table" -X "$chain" || true
			done
		done
	done
	[ "$policy" = theirs ] || as_root iptables -w -P FORWARD "${policy:-ACCEPT}" || true
}

# docker_rules_drop TOOL TABLE PATTERN.
docker_rules_drop() {
	local rule
	as_root "$1-save" -t "$2" 2>/dev/null | { grep -E -- "$3" || true; } | while read -r -a rule; do
		as_root "$1" -w -t "$2" -D "${rule[@]:1}" || true
	done || true # no such table, or no privilege: then there is no rule of ours
}
