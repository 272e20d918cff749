#!/bin/sh
# Starts Redis with the password that the service `secrets` created. The password is passed in a
# file, because other users of the host can read command lines.
set -eu
umask 077
{
	cat /etc/app/redis.conf
	printf 'requirepass %s\n' "$(cat /run/passwords/redis)"
} >/tmp/redis.conf
chown redis /tmp/redis.conf /run/redis
# The entry point of the image switches to the user redis.
exec docker-entrypoint.sh redis-server /tmp/redis.conf
