#!/usr/bin/env bash
# A read replica: copies the primary at first start, then streams from it through a slot
# of its own. When the slot is gone (the replica was away for longer than
# max_slot_wal_keep_size lasts), the copy is of no use any more, and it is made anew.
# While the primary is away, it serves what it has.
#
# `replica.sh healthy` is the health check. A slot that is lost while it runs makes it
# fail: then the replica serves ever older data, until it is started again.
set -euo pipefail

export PGPASSFILE=/tmp/pgpass
primary="host=postgres user=replica application_name=replica connect_timeout=5 passfile=$PGPASSFILE"

# Within so many seconds: a primary that hangs must not hold up start or health check.
walsender() { timeout "$1" psql -XAtq -d "$primary dbname=replication replication=true" -c "$2"; }

# "physical|LSN|timeline"; no LSN: it was given up.
slot() { walsender 5 'READ_REPLICATION_SLOT replica'; }

# Whether the primary no longer keeps what this replica lacks. No answer: not known to be so.
lost() {
	local state
	state=$(slot) && [[ ! $state =~ ^physical\|[0-9A-F]+/ ]] &&
		echo "the primary no longer keeps what this replica lacks ($state)"
}

if [ "${1-}" = healthy ]; then
	pg_isready -q -h 127.0.0.1 -U app -d app && ! lost
	exit
fi

if [ "$(id -u)" -eq 0 ]; then
	(umask 077 && printf '*:*:*:*:%s\n' "$(cat /run/passwords/database)" >"$PGPASSFILE")
	chown postgres "$PGPASSFILE" "$(dirname "$PGDATA")"
	exec gosu postgres bash "$0" "$@"
fi

# Whole, or not at all: a copy that was interrupted has another name.
copy() {
	local half=$PGDATA.half
	rm -rf "$half" "$PGDATA"
	! slot | grep -q physical || walsender 120 'DROP_REPLICATION_SLOT replica WAIT'
	pg_basebackup -d "$primary" -D "$half" -C -S replica -X stream -c fast
	touch "$half/standby.signal"
	mv "$half" "$PGDATA"
}

if [ ! -e "$PGDATA/PG_VERSION" ]; then
	copy
elif lost; then
	echo "copying anew"
	copy
fi
exec postgres -cprimary_conninfo="$primary" -cprimary_slot_name=replica "$@"
