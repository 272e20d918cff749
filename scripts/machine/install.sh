# install.sh: installs missing packages with apt; every package that a script needs is installed
# here. Nothing else on the machine changes: no service is started (policy-rc.d), no default
# Postgres cluster is created, nothing is restarted (needrestart). Installed packages are kept
# as they are.
#
# Sourced after root.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

POLICY=/usr/sbin/policy-rc.d
NO_CLUSTER=/etc/postgresql-common/createcluster.d/app-dev.conf

postgres_bin() {
	local newest
	newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
	[ -x "$newest" ] && dirname "$newest"
}

# Prints the path of a statically linked busybox, which runs in an empty image.
busybox_find_static() {
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

# missing_packages WANTED…: prints the packages that are not installed, one a line. WANTED are
# words out of "postgres redis docker compose demo wrk debootstrap"; a C compiler is always wanted.
missing_packages() {
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
		# Where the kernel uses AppArmor, dockerd starts no container without its parser.
		if grep -qs Y /sys/module/apparmor/parameters/enabled && ! has apparmor_parser; then
			echo apparmor
		fi
		;;
	esac
	case " $* " in *" compose "*) has docker-compose || docker compose version >/dev/null 2>&1 || echo docker-compose ;; esac
	case " $* " in *" wrk "*) has wrk || echo wrk ;; esac
	case " $* " in *" debootstrap "*)
		has debootstrap || echo debootstrap
		has zstd || echo zstd
		;;
	esac
	case " $* " in *" demo "*) busybox_find_static >/dev/null || has busybox || echo busybox-static ;; esac
	# Newer releases have the Docker command line in a package of its own.
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

# The policy and the cluster setting exist only during the installation, and only if the
# machine has none.
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

# The EXIT trap calls it too, so that an interrupted installation leaves no policy behind.
install_undo() {
	[ -z "$policy_placed" ] || as_root rm -f "$POLICY"
	[ -z "$cluster_placed" ] || as_root rm -f "$NO_CLUSTER"
	policy_placed="" cluster_placed=""
}

# The EXIT trap of scripts that install.
install_exit_trap() {
	local status=$?
	install_undo
	phase_failed "$status"
}

# Prints the path of promtool.
promtool_find() {
	local file
	for file in "$DEV/promtool/usr/bin/promtool" "$(command -v promtool || true)"; do
		[ ! -x "$file" ] || { printf '%s' "$file" && return; }
	done
	return 1
}

# Prints the path of nginx.
nginx_find() {
	local file
	for file in "$(command -v nginx || true)" "$DEV/nginx/usr/sbin/nginx"; do
		[ ! -x "$file" ] || { printf '%s' "$file" && return; }
	done
	return 1
}

# unpack_package PACKAGE DIRECTORY REFRESHED: downloads a package and unpacks it into a
# directory, without installing it. REFRESHED is set when apt-get update has run.
unpack_package() {
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

# install_missing WANTED…: installs what is missing. WANTED are the words of missing_packages,
# promtool and nginx.
install_missing() {
	local packages=() refreshed=""
	mapfile -t packages < <(missing_packages "$@" | sort -u)
	if ((${#packages[@]})); then
		has apt-get || die "not found: ${packages[*]} (Debian's names). This machine has no apt-get: install them and run make again"
		may_root || die "not installed: run 'apt-get install ${packages[*]}' as root, or allow $(id -un) sudo without a password"
		say "    installing as root: ${packages[*]}"
		apt_get update
		refreshed=yes
		# With fresh package lists the result may differ (docker-cli).
		mapfile -t packages < <(missing_packages "$@" | sort -u)
		install_quietly "${packages[@]}"
	fi
	case " $* " in *" demo "*) busybox_install "$refreshed" ;; esac
	# These two are unpacked into the state directory. Installed, they would start their services
	# at the next boot.
	case " $* " in *" promtool "*) promtool_find >/dev/null || unpack_package prometheus "$DEV/promtool" "$refreshed" ;; esac
	case " $* " in *" nginx "*) nginx_find >/dev/null || unpack_package nginx "$DEV/nginx" "$refreshed" ;; esac
	has cargo || die "cargo not found: install Rust with rustup, then run make again"
	PHASE_NOTE=${packages[*]:-"nothing missing"}
}

# Where the machine has a busybox that is not static, the package is unpacked and not
# installed, because it would replace the machine's own.
busybox_install() {
	local refreshed=$1
	! busybox_find_static >/dev/null || return 0
	unpack_package busybox-static "$DEV/busybox" "$refreshed"
	busybox_find_static >/dev/null || die "busybox-static does not run here"
}

redis_check_version() {
	local version
	version=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
	[ "${version:-0}" -ge 7 ] ||
		die "redis-server $(redis-server --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p') is too old, 7.0 is needed: install a newer one, or set REDIS_URL"
}
