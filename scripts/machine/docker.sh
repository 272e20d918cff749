# docker.sh: chooses the Docker engine, and starts a private dockerd where none runs.
#
# The private dockerd has its data, sockets, configuration and containerd under
# DOCKER_BASE/docker, and a bridge of its own. It does not touch docker0, /etc/docker or a
# containerd of the machine. Two dockerds on one machine still share iptables' DOCKER chains,
# so an engine that already runs is always preferred.
#
# After docker_choose either DOCKER_HOST is set, or DOCKER_REASON says why there is no Docker.
#
# Sourced after install.sh, process.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

DOCKER_REASON=""
DOCKER_PRIVATE=""

docker_socket() { printf '%s' "$DOCKER_BASE/docker/docker.sock"; }

# Interface names have at most 15 characters.
docker_bridge() { printf 'appbr-%s' "$(printf '%s' "$DOCKER_BASE" | sha256sum | cut -c 1-8)"; }

# docker_answers HOST: succeeds when an engine responds there.
docker_answers() {
	case $1 in
	"") return 1 ;;
	unix://*) [ "$(curl -s -m 5 --unix-socket "${1#unix://}" http://docker/_ping)" = OK ] ;;
	*) DOCKER_HOST=$1 timeout 10 docker version >/dev/null 2>&1 ;;
	esac
}

docker_private_runs() {
	process_alive "$DOCKER_BASE/dockerd.pid" >/dev/null && docker_answers "unix://$(docker_socket)"
}

# Prints the DOCKER_HOST of the machine's own engine, or of the user's rootless one.
docker_find() {
	local socket
	for socket in /var/run/docker.sock "${XDG_RUNTIME_DIR:-/nonexistent}/docker.sock"; do
		if docker_answers "unix://$socket"; then
			printf 'unix://%s' "$socket"
			return
		fi
	done
	return 1
}

# docker_join_group COMMAND…: where Docker runs but only another group may use its socket, and
# sudo works, runs the command again with that group. A new login after `usermod -aG docker`
# would have the same effect; nothing on the machine changes.
docker_join_group() {
	local socket=/var/run/docker.sock
	[ -S "$socket" ] && [ ! -w "$socket" ] && [ -z "${DOCKER_HOST-}" ] && [ -z "${APP_JOINED_GROUP-}" ] || return 0
	[ "$(id -u)" -ne 0 ] && may_root || return 0
	exec sudo -n -E env "PATH=$PATH" "HOME=$HOME" "USER=$(id -un)" "LOGNAME=$(id -un)" APP_JOINED_GROUP=yes \
		setpriv "--reuid=$(id -u)" "--regid=$(id -g)" \
		"--groups=$(id -G | tr ' ' ,),$(stat -c %g "$socket")" -- "$@"
}

# Succeeds when an engine has to be installed. While curl is missing, a socket counts as an
# engine that runs.
docker_needs_install() {
	[ "${COMPUTE_BACKEND-}" != simulated ] && [ -z "${DOCKER_HOST-}" ] && may_root || return 1
	if has curl; then ! docker_find >/dev/null; else [ ! -S /var/run/docker.sock ]; fi
}

docker_choose() {
	local given=${DOCKER_HOST-}
	[ "$given" != "unix://$(docker_socket)" ] || given="" # from a sourced dev.env
	unset DOCKER_CONTEXT
	export DOCKER_HOST=""
	if [ "${COMPUTE_BACKEND-}" = simulated ]; then
		DOCKER_REASON="COMPUTE_BACKEND=simulated is set"
		PHASE_NOTE="not used"
		return
	fi
	if [ -n "$given" ]; then
		docker_answers "$given" || die "DOCKER_HOST=$given does not respond: start that Docker, or unset DOCKER_HOST"
		DOCKER_HOST=$given
	elif docker_private_runs; then
		DOCKER_HOST="unix://$(docker_socket)" DOCKER_PRIVATE=yes
	elif DOCKER_HOST=$(docker_find); then
		:
	elif [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
		DOCKER_REASON="$(id -un) may not use /var/run/docker.sock: join its group (sudo usermod -aG docker $(id -un)) and log in again"
	elif ! may_root; then
		DOCKER_REASON="no Docker engine runs here, and starting one needs root: start Docker, or allow $(id -un) sudo without a password"
	else
		docker_start && DOCKER_HOST="unix://$(docker_socket)" DOCKER_PRIVATE=yes
	fi
	if [ -n "$DOCKER_HOST" ]; then
		PHASE_NOTE="engine $(docker version -f '{{.Server.Version}}')${DOCKER_PRIVATE:+, private}"
	else
		PHASE_NOTE="cannot run here"
	fi
}

docker_start() {
	local dir=$DOCKER_BASE/docker bridge log=$DEV/log/dockerd.log other
	bridge=$(docker_bridge)
	if other=$(docker_find_other); then
		say "    another dockerd runs here (pid $other): the start of a private one resets the iptables rules of its published ports; set DOCKER_HOST to use the other one"
	fi
	# Stops what a killed script left running.
	process_stop "$DOCKER_BASE/dockerd.pid" 30
	process_stop "$DOCKER_BASE/containerd.pid" 10
	docker_kill_leftovers
	mkdir -p "$dir"
	rm -f "$dir/docker.pid" "$dir/docker.sock"
	: >"$log"
	docker_netfilter_save
	ip link show "$bridge" >/dev/null 2>&1 || as_root ip link add "$bridge" type bridge || {
		DOCKER_REASON="no network bridge can be created here (not enough privileges)"
		return 1
	}
	# An empty configuration, because /etc/docker/daemon.json belongs to the machine's engine.
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
	wait_until 60 docker_up_or_exited || true
	if ! docker_private_runs; then
		DOCKER_REASON="dockerd did not start: $(docker_last_error "$log")"
		docker_stop
		return 1
	fi
}

docker_up_or_exited() { process_gone "$DOCKER_BASE/dockerd.pid" || docker_private_runs; }

docker_last_error() {
	local line message
	line=$(grep -iE 'failed|level=(error|fatal)' "$1" | tail -n 1)
	[ -n "$line" ] || line=$(tail -n 1 "$1")
	message=${line##*msg=\"}
	printf '%.300s' "${message%\"}"
}

# docker_probe IMAGE: runs a container on a new network. On failure it sets DOCKER_REASON and
# clears DOCKER_HOST.
docker_probe() {
	local image=$1 name output
	[ -n "$DOCKER_HOST" ] || return 0
	name=app-probe-$$
	if ! output=$({ docker network create "$name" && docker run --rm --network "$name" "$image" true; } 2>&1); then
		DOCKER_REASON="Docker responds but cannot run a container: $(grep -v '^$' <<<"$output" | tail -n 1)"
	fi
	docker network rm "$name" >/dev/null 2>&1 || true
	[ -z "$DOCKER_REASON" ] || DOCKER_HOST=""
}

# Prints the pid of another dockerd in this network namespace.
docker_find_other() {
	local comm pid own
	own=$(process_alive "$DOCKER_BASE/dockerd.pid" || true)
	for comm in /proc/[0-9]*/comm; do
		[ "$(cat "$comm" 2>/dev/null)" = dockerd ] || continue
		pid=${comm#/proc/} pid=${pid%/comm}
		[ "$pid" != "$own" ] || continue
		[ "$(as_root readlink "/proc/$pid/ns/net")" = "$(readlink /proc/self/ns/net)" ] || continue
		printf '%s' "$pid"
		return
	done
	return 1
}

# Stops the private engine and everything that it started. Containers outlive a dockerd that
# was killed, so they are ended as well.
docker_stop() {
	local bridges=() bridge
	process_stop "$DOCKER_BASE/dockerd.pid" 30
	process_stop "$DOCKER_BASE/containerd.pid" 10
	docker_kill_leftovers
	# dockerd does not remove its bridges and creates them again when it starts. Their names are
	# read from its records, which exist even if it was killed.
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

# Kills the shims and containers of the private containerd, which have its socket in their
# command line. Does nothing while the daemons run.
docker_kill_leftovers() {
	local cmdline pid child
	docker_private_runs && return
	for cmdline in /proc/[0-9]*/cmdline; do
		tr '\0' ' ' <"$cmdline" 2>/dev/null | grep -qF -- "containerd-shim" || continue
		tr '\0' ' ' <"$cmdline" 2>/dev/null | grep -qF -- "-address $DOCKER_BASE/docker/exec/" || continue
		pid=${cmdline#/proc/} pid=${pid%/cmdline}
		for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid"; do
			signal KILL "$child"
		done
	done
}

# dockerd never removes its firewall rules and sets the policy of FORWARD to DROP. After it
# stopped, the rules that name its bridges are removed; its chains and the policy as well, unless
# they existed before or another dockerd needs them. This records the state before its start.
docker_netfilter_save() {
	local before=$DOCKER_BASE/netfilter
	[ ! -e "$before" ] || return 0
	if docker_find_other >/dev/null || as_root iptables-save 2>/dev/null | grep -q '^:DOCKER'; then
		echo theirs >"$before"
	else
		as_root iptables-save -t filter 2>/dev/null | sed -n 's/^:FORWARD \([A-Z]*\).*/\1/p' >"$before"
	fi
}

# docker_netfilter_restore BRIDGE…: removes the rules of these bridges, see above.
docker_netfilter_restore() {
	local before=$DOCKER_BASE/netfilter policy tool table chain
	[ -e "$before" ] || return 0
	policy=$(cat "$before")
	rm -f "$before"
	! docker_find_other >/dev/null || policy=theirs
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

# docker_rules_drop TOOL TABLE PATTERN: deletes the rules that match.
docker_rules_drop() {
	local rule
	as_root "$1-save" -t "$2" 2>/dev/null | { grep -E -- "$3" || true; } | while read -r -a rule; do
		as_root "$1" -w -t "$2" -D "${rule[@]:1}" || true
	done || true # without the table or the privilege dockerd made no rule either
}
