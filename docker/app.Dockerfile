# One image for all commands: app serve, work, migrate, secrets init, purge.
#
# It contains the program, the libraries that it is linked with and the CA certificates: no
# shell, no package manager. Any Docker since 17.09 can build it, without BuildKit.
# docs/adr/0011-image-from-scratch.md gives the reasons.

FROM rust:1-slim AS build
WORKDIR /build

# The dependencies are compiled in their own layer, which is reused until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
 && cargo build --release --locked --bin app

# The copied files keep their modification times, which may be older than the build above. Without
# the touch, cargo would consider the empty program up to date.
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
 # A new named volume gets the owner and mode of its mount point. The group may read passwords
 # and write state, because app work runs as root without capabilities.
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
