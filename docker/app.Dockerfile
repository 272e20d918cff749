# One image for all roles: app serve, work, migrate, secrets init, purge.
#
# It holds the program, the libraries it was linked against and the certificates it
# verifies with, and nothing else: no shell, no package manager. Built by any Docker
# since 17.09; nothing here needs BuildKit. Why from scratch: docs/adr/0011.

FROM rust:1-slim AS build
WORKDIR /build

# The dependencies, in a layer that stays while Cargo.lock does.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
 && cargo build --release --locked --bin app

# The copies keep their times, which may be older than the build above: touched, or
# cargo takes the empty program for the real one.
COPY migrations migrations
COPY src src
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked --bin app \
 && mkdir -p /image/usr/bin /image/etc/ssl/certs \
 && cp target/release/app /image/usr/bin/ \
 && ldd target/release/app | grep -o '/[^ ]*' | xargs -I '{}' cp -L --parents '{}' /image \
 && cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
 && echo 'app:x:65532:65532::/var/lib/app:/usr/bin/app' >/image/etc/passwd \
 && echo 'app:x:65532:' >/image/etc/group \
 # New named volumes take over owner and mode of what they are mounted on. The group
 # may read passwords and write state: app work is root without any capability.
 && mkdir -p /image/var/lib/app/keys /image/var/lib/app/passwords /image/var/lib/app/state \
 && chown -R 65532:65532 /image/var/lib/app \
 && chmod 700 /image/var/lib/app/keys \
 && chmod 750 /image/var/lib/app/passwords \
 && chmod 770 /image/var/lib/app/state

FROM scratch
COPY --from=build /image /
LABEL org.opencontainers.image.title="app" \
      org.opencontainers.image.description="A self-hosted control plane that turns POST /instances into a running, networked container" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENV APP_STATE_DIR=/var/lib/app/state \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/bin/app"]
CMD ["serve"]
