# image.sh: a small web image from Debian's static busybox, so that no registry is needed.
# The same files give the same checksum; an image with that checksum is kept.
#
# Sourced after docker.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

DEMO_IMAGE=app-demo:1

# PID 1 has no default signal handlers. The shell's trap ends the container at SIGTERM instead
# of at SIGKILL ten seconds later.
DEMO_CMD='["/bin/sh","-c","trap '"'exit 0'"' TERM INT; httpd -f -v -p 80 -h /www & wait"]'

image_prepare() {
	[ -n "$DOCKER_HOST" ] || { PHASE_NOTE="not needed" && return; }
	local tree=$STATE/image busybox applet sum before output
	busybox=$(busybox_find_static)
	rm -rf "$tree"
	mkdir -p "$tree"/{bin,etc,tmp,www}
	chmod 1777 "$tree/tmp"
	cp "$busybox" "$tree/bin/busybox"
	chmod 755 "$tree/bin/busybox"
	for applet in $("$busybox" --list); do
		[ -e "$tree/bin/$applet" ] || ln -s busybox "$tree/bin/$applet"
	done
	printf 'root:x:0:0:root:/:/bin/sh\n' >"$tree/etc/passwd"
	printf 'root:x:0:\n' >"$tree/etc/group"
	printf '<h1>It runs.</h1>\n' >"$tree/www/index.html"
	tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$tree.tar" -C "$tree" .
	sum=$({ cat "$tree.tar" && printf '%s' "$DEMO_CMD"; } | sha256sum | cut -c 1-16)
	if [ "$(docker image inspect -f '{{index .Config.Labels "app.demo"}}' "$DEMO_IMAGE" 2>/dev/null)" = "$sum" ]; then
		PHASE_NOTE="$DEMO_IMAGE is up to date"
	else
		before=$(docker image ls -q --no-trunc -f label=app.demo "$DEMO_IMAGE")
		if ! output=$(docker import -c "CMD $DEMO_CMD" -c 'EXPOSE 80' -c 'ENV PATH=/bin' -c "LABEL app.demo=$sum" \
			"$tree.tar" "$DEMO_IMAGE" 2>&1); then
			DOCKER_REASON="Docker responds but cannot import an image: $(grep -v '^$' <<<"$output" | tail -n 1)"
			DOCKER_HOST=""
			return
		fi
		[ -z "$before" ] || docker image rm "$before" || true # kept while a container uses it
		: >"$DEV/image-imported"
		PHASE_NOTE=$DEMO_IMAGE
	fi
	rm -rf "$tree" "$tree.tar"
	docker_probe "$DEMO_IMAGE"
}

# Falls back to the simulated backend, with a warning, where Docker cannot run. A private
# engine that runs but cannot start containers is stopped again.
docker_or_fall_back() {
	[ -z "$DOCKER_HOST" ] || return 0
	[ "${REQUIRE_REAL-}" != 1 ] || die "Docker is required (REQUIRE_REAL=1) and cannot run here: $DOCKER_REASON"
	[ "${COMPUTE_BACKEND-}" = simulated ] || warn "NO DOCKER, containers are simulated: $DOCKER_REASON"
	[ -z "$DOCKER_PRIVATE" ] || docker_stop >>"$LOGS/phase-docker.log" 2>&1
	COMPUTE_BACKEND=simulated NETWORK_BACKEND=simulated
}
