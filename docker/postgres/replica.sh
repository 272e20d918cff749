#!/usr/bin/env bash
# A read replica: copies the primary at first start, then streams from it through a slot
# of its own. When the slot is gone (the replica was away for longer than
# max_slot_wal_keep_size lasts), the copy is of no use any more, and it is made anew.
# While the primary is away, it serves what it has.
set -euo pipefail

export PGPASSFILE=/tmp/pgpass
primary="host=postgres user=replica application_name=replica connect_timeout=5 passfile=$PGPASSFILE"

if [ "$(id -u)" -eq 0 ]; then
	(umask 077 && printf '*:*:*:*:%s\n' "$(cat /run/passwords/database)" >"$PGPASSFILE")
	chown postgres "$PGPASSFILE" "$(dirname "$PGDATA")"
	exec gosu postgres bash "$0" "$@"
fi

walsender() { psql -XAtq -d "$primary dbname=replication replication=true" -c "$1"; }

# Whole, or not at all: a copy that was interrupted has another name.
copy() {
	local half=$PGDATA.half
	rm -rf "$half" "$PGDATA"
	! slot | grep -q physical || walsender 'DROP_REPLICATION_SLOT replica WAIT'
	pg_basebackup -d "$primary" -D "$half" -C -S replica -X stream -c fast
	touch "$half/standby.signal"
	mv "$half" "$PGDATA"
}

# "physical|LSN|timeline"; no LSN: it was given up.
slot() { walsender 'READ_REPLICATION_SLOT replica'; }

if [ ! -e "$PGDATA/PG_VERSION" ]; then
	copy
elif state=$(slot) && [[ ! $state =~ ^physical\|[0-9A-F]+/ ]]; then
	echo "the primary no longer keeps what this replica lacks ($state): copying anew"
	copy
fi
exec postgres -cprimary_conninfo="$primary" -cprimary_slot_name=replica "$@"
