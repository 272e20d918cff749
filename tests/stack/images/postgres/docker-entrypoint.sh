#!/usr/bin/env bash
# The documented interface of the official image, as far as the compose files use it.
set -Eeo pipefail
[ "${1#-}" != "$1" ] && set -- postgres "$@"
[ "$1" = postgres ] || exec "$@"
case " $* " in *" --version "*|*" -V "*|*" --help "*) exec "$@";; esac
for v in POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB POSTGRES_INITDB_ARGS; do   # NAME_FILE: docker secrets
  f=${v}_FILE; if [ -n "${!f:-}" ]; then export "$v=$(cat "${!f}")"; unset "$f"; fi
done
: "${POSTGRES_USER:=postgres}"; : "${POSTGRES_DB:=$POSTGRES_USER}"; export POSTGRES_USER POSTGRES_DB
mkdir -p "$PGDATA"; chmod 700 "$PGDATA" || :
if [ "$(id -u)" = 0 ]; then
  find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres {} +
  exec gosu postgres "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
    echo 'Error: POSTGRES_PASSWORD is empty (or set POSTGRES_HOST_AUTH_METHOD=trust)' >&2; exit 1; fi
  eval "initdb --username=\"\$POSTGRES_USER\" --pwfile=<(printf '%s\n' \"\${POSTGRES_PASSWORD:-}\") ${POSTGRES_INITDB_ARGS:-}"
  printf '\nhost all all all %s\n' "${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
  export PGPASSWORD=${PGPASSWORD:-${POSTGRES_PASSWORD:-}}
  pg_ctl -D "$PGDATA" -w -o "$(printf '%q ' "${@:2}" -c listen_addresses= -p "${PGPORT:-5432}")" start
  docker_process_sql() { PGHOST='' PGHOSTADDR='' psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -w -X -d "$POSTGRES_DB" "$@"; }
  if [ "$POSTGRES_DB" != postgres ]; then
    PGHOST='' psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -w -X -d postgres -v db="$POSTGRES_DB" <<<'CREATE DATABASE :"db";'; fi
  for f in /docker-entrypoint-initdb.d/*; do
    case $f in
      *.sh) if [ -x "$f" ]; then echo "$0: running $f"; "$f"; else echo "$0: sourcing $f"; . "$f"; fi;;
      *.sql) echo "$0: running $f"; docker_process_sql -f "$f";;
      *.sql.gz) gunzip -c "$f" | docker_process_sql;;
      *.sql.zst) zstd -dc "$f" | docker_process_sql;;
      *) [ -e "$f" ] && echo "$0: ignoring $f" || :;;
    esac
  done
  pg_ctl -D "$PGDATA" -m fast -w stop; unset PGPASSWORD
  echo; echo 'PostgreSQL init process complete; ready for start up.'
fi
exec "$@"
