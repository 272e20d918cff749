# install.sh: gets what is missing with apt, and nothing else on the machine
# changes: no service is started (policy-rc.d), no default cluster is created,
# nothing is restarted (needrestart). What is there already is left alone.
#
# Sourced after place.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for other parts

POLICY=/usr/sbin/policy-rc.d
NO_CLUSTER=/etc/postgresql-common/createcluster.d/app-dev.conf

postgres_bin() {
	local newest
	newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
	[ -x "$newest" ] && dirname "$newest"
}

# A busybox that runs in an empty image. Prints its path.
busybox_static() {
	local file
	for file in "$DEV/busybox/bin/busybox" "$DEV/busybox/usr/bin/busybox" "$(command -v busybox || true)"; do
		[ -x "$file" ] || continue
		ldd "$file" 2>&1 | grep -q '=>' && continue
		printf '%s' "$file"
		return
	done
	return 1
}

has() { command -v "$1" >/dev/null; }

# The packages that are missing, one a line. Wanted are words out of
# "postgres redis docker demo"; a compiler always is.
missing() {
	has cc || printf '%s\n' gcc libc6-dev
	[ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
	[ $# -gt 0 ] || return 0
	has curl || echo curl
	has jq || echo jq
	has setpriv || echo util-linux
	case " $* " in *" postgres "*) postgres_bin >/dev/null || echo postgresql ;; esac
	case " $* " in *" redis "*) has redis-server || echo redis-server ;; esac
	case " $* " in *" docker "*)
		has dockerd || echo docker.io
		has iptables || echo iptables
		has ip || echo iproute2
		# Without its parser no container starts where the kernel has AppArmor on.
		if grep -qs Y /sys/module/apparmor/parameters/enabled && ! has apparmor_parser; then
			echo apparmor
		fi
		;;
	esac
	case " $* " in *" demo "*) busybox_static >/dev/null || has busybox || echo busybox-static ;; esac
	# The command line is a package of its own in newer releases.
	case " $* " in *" docker "* | *" demo "*)
		has docker || if apt-cache show docker-cli >/dev/null 2>&1; then echo docker-cli; else echo docker.io; fi
		;;
	esac
}

apt_get() {
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 NEEDRESTART_MODE=l \
		apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

policy_placed="" cluster_placed=""

# Both only while we install, and only if nobody put them there before us.
install_quietly() {
	if [ ! -e "$POLICY" ]; then
		policy_placed=yes
		printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
		as_root chmod 755 "$POLICY"
	fi
	case " $* " in *" postgresql "*)
		if [ ! -e "$NO_CLUSTER" ] && ! postgres_bin >/dev/null; then
			cluster_placed=yes
			as_root mkdir -p "$(dirname "$NO_CLUSTER")"
			printf 'create_main_cluster = false\n' | as_root tee "$NO_CLUSTER" >/dev/null
		fi
		;;
	esac
	apt_get install --no-install-recommends "$@"
	install_undo
}

# Also from the EXIT trap: an interrupted installation leaves no policy behind.
install_undo() {
	[ -z "$policy_placed" ] || as_root rm -f "$POLICY"
	[ -z "$cluster_placed" ] || as_root rm -f "$NO_CLUSTER"
	policy_placed="" cluster_placed=""
}

# The EXIT trap of whatever installs.
install_end() {
	local status=$?
	install_undo
	phase_failed "$status"
}

# Prints promtool's path.
promtool_found() {
	local file
	for file in "$DEV/promtool/usr/bin/promtool" "$(command -v promtool || true)"; do
		[ ! -x "$file" ] || { printf '%s' "$file" && return; }
	done
	return 1
}

# Prints nginx' path.
nginx_found() {
	local file
	for file in "$(command -v nginx || true)" "$DEV/nginx/usr/sbin/nginx"; do
		[ ! -x "$file" ] || { printf '%s' "$file" && return; }
	done
	return 1
}

# unpacked PACKAGE DIRECTORY REFRESHED: its files without installing it.
unpacked() {
	has apt-get || die "not found: $1 (Debian's name). This machine has no apt-get: install it and run make again"
	[ -n "$3" ] || ! may_root || apt_get update
	mkdir -p "$2"
	(
		cd "$2" || exit
		apt-get -q download "$1"
		dpkg-deb -x "$1"_*.deb .
		rm -f "$1"_*.deb
	)
}

# install_missing postgres redis docker demo promtool nginx (those that are wanted)
install_missing() {
	local packages=() refreshed=""
	mapfile -t packages < <(missing "$@" | sort -u)
	if ((${#packages[@]})); then
		has apt-get || die "not found: ${packages[*]} (Debian's names). This machine has no apt-get: install them and run make again"
		may_root || die "not installed: run 'apt-get install ${packages[*]}' as root, or allow $(id -un) sudo without a password"
		say "    installing ${packages[*]}"
		apt_get update
		refreshed=yes
		# The list may be longer now that the package lists are known (docker-cli).
		mapfile -t packages < <(missing "$@" | sort -u)
		install_quietly "${packages[@]}"
	fi
	case " $* " in *" demo "*) install_busybox "$refreshed" ;; esac
	# Installed, these packages would start their services at the next boot.
	case " $* " in *" promtool "*) promtool_found >/dev/null || unpacked prometheus "$DEV/promtool" "$refreshed" ;; esac
	case " $* " in *" nginx "*) nginx_found >/dev/null || unpacked nginx "$DEV/nginx" "$refreshed" ;; esac
	has cargo || die "cargo not found: install Rust with rustup, then run make again"
	PHASE_NOTE=${packages[*]:-"nothing missing"}
}

# Where the machine has a busybox that is not static, the package is unpacked, not
# installed: installed, it would replace the machine's own.
install_busybox() {
	local refreshed=$1
	! busybox_static >/dev/null || return 0
	unpacked busybox-static "$DEV/busybox" "$refreshed"
	busybox_static >/dev/null || die "busybox-static does not run here"
}

redis_new_enough() {
	local version
	version=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
	[ "${version:-0}" -ge 7 ] ||
		die "redis-server $(redis-server --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p') is too old, 7.0 is needed: install a newer one, or set REDIS_URL"
}
