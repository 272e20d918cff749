# deny.sh: cargo-deny, which checks the dependencies against deny.toml. It is a
# program of its own that takes minutes to build (2 min 15 s on 2 cores), so it
# is built once per version, outside of the checkout; CI keeps it between runs.
#
# Sourced.
# shellcheck shell=bash

DENY_VERSION=0.20.2
DENY_ROOT=${XDG_CACHE_HOME:-$HOME/.cache}/app-ci/tools/cargo-deny-$DENY_VERSION
# How long fetching the database of advisories may take before it counts as unreachable.
ADVISORIES_TIMEOUT=60

deny_install() {
	if [ ! -x "$DENY_ROOT/bin/cargo-deny" ]; then
		# With a target directory of its own, which cargo removes afterwards.
		env -u CARGO_TARGET_DIR cargo install cargo-deny --version "$DENY_VERSION" --locked --root "$DENY_ROOT"
		PHASE_NOTE="built $DENY_VERSION"
	fi
}

# deny WHICH…: the program's dependencies.
deny() { "$DENY_ROOT/bin/cargo-deny" --locked check "$@"; }

# The load generator is not part of the program: it may bring another TLS stack.
deny_load() {
	"$DENY_ROOT/bin/cargo-deny" --locked --manifest-path tests/load/Cargo.toml --config deny.toml \
		check --allow license-not-encountered licenses sources
}

# Known vulnerabilities and withdrawn versions.
deny_advisories() {
	if timeout "$ADVISORIES_TIMEOUT" "$DENY_ROOT/bin/cargo-deny" --locked fetch db; then
		deny advisories
	else
		warn "ADVISORIES NOT CHECKED: the RustSec database could not be fetched (the reason is above)"
	fi
}
