#!/bin/sh
# Redis with the password that the service `secrets` made. It goes through a file, for
# everybody can read a command line.
set -eu
umask 077
{
	cat /etc/app/redis.conf
	printf 'requirepass %s\n' "$(cat /run/passwords/redis)"
} >/tmp/redis.conf
chown redis /tmp/redis.conf /run/redis
# The image's own entry point becomes the user redis.
exec docker-entrypoint.sh redis-server /tmp/redis.conf
