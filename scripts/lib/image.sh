# image.sh: a tiny web image from Debian's static busybox, so that no registry is
# needed. The same files give the same checksum, and a present image is kept.
#
# Sourced after docker.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034  # variables for other parts

DEMO_IMAGE=app-demo:1

# PID 1 has no default handlers: a shell that answers SIGTERM makes stopping quick.
DEMO_CMD='["/bin/sh","-c","trap '"'exit 0'"' TERM INT; httpd -f -v -p 80 -h /www & wait"]'

image_prepare() {
	[ -n "$DOCKER_HOST" ] || { PHASE_NOTE="not needed" && return; }
	local tree=$STATE/image busybox applet sum before said
	busybox=$(busybox_static)
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
		PHASE_NOTE="$DEMO_IMAGE is there"
	else
		before=$(docker image ls -q --no-trunc -f label=app.demo "$DEMO_IMAGE")
		if ! said=$(docker import -c "CMD $DEMO_CMD" -c 'EXPOSE 80' -c 'ENV PATH=/bin' -c "LABEL app.demo=$sum" \
			"$tree.tar" "$DEMO_IMAGE" 2>&1); then
			DOCKER_REASON="Docker answers but takes no image: $(grep -v '^$' <<<"$said" | tail -n 1)"
			DOCKER_HOST=""
			return
		fi
		[ -z "$before" ] || docker image rm "$before" || true # still used: it stays
		: >"$DEV/image-imported"
		PHASE_NOTE=$DEMO_IMAGE
	fi
	rm -rf "$tree" "$tree.tar"
	docker_probe "$DEMO_IMAGE"
}

# Docker that cannot run is an accident to be told, not a silent difference. One of
# ours that runs but is of no use is stopped again.
docker_or_simulated() {
	[ -z "$DOCKER_HOST" ] || return 0
	[ "${REQUIRE_REAL-}" != 1 ] || die "Docker is required (REQUIRE_REAL=1) and cannot run here: $DOCKER_REASON"
	[ "${COMPUTE_BACKEND-}" = simulated ] || loud "NO DOCKER, everything below is simulated: $DOCKER_REASON"
	[ -z "$DOCKER_OURS" ] || docker_stop >>"$LOGS/phase-docker.log" 2>&1
	COMPUTE_BACKEND=simulated NETWORK_BACKEND=simulated
}
