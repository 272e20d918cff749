#!/usr/bin/env bash
# Runs a read replica. It copies the primary at the first start, then streams from it through its
# own replication slot. The primary drops the slot's WAL when the replica was down for longer than
# max_slot_wal_keep_size allows; then the copy cannot catch up and is made again. While the primary
# is down, the replica serves the data that it has.
#
# `replica.sh healthy` is the health check. It fails when the slot is lost while the replica runs:
# its data then falls behind until it is restarted.
set -euo pipefail

export PGPASSFILE=/tmp/pgpass
primary="host=postgres user=replica application_name=replica connect_timeout=5 passfile=$PGPASSFILE"

# walsender SECONDS COMMAND: runs a replication command on the primary. The timeout keeps a primary
# that hangs from blocking the start or the health check.
walsender() { timeout "$1" psql -XAtq -d "$primary dbname=replication replication=true" -c "$2"; }

# Prints "physical|LSN|timeline". The LSN is empty when the primary dropped the slot's WAL.
slot() { walsender 5 'READ_REPLICATION_SLOT replica'; }

# Succeeds when the primary no longer has the WAL that this replica needs. Without a response
# from the primary it fails.
lost() {
	local state
	state=$(slot) && [[ ! $state =~ ^physical\|[0-9A-F]+/ ]] &&
		echo "the primary no longer has the WAL that this replica needs ($state)"
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

# Copies into a directory of another name, so that an interrupted copy is never used.
copy() {
	local partial=$PGDATA.partial
	rm -rf "$partial" "$PGDATA"
	! slot | grep -q physical || walsender 120 'DROP_REPLICATION_SLOT replica WAIT'
	pg_basebackup -d "$primary" -D "$partial" -C -S replica -X stream -c fast
	touch "$partial/standby.signal"
	mv "$partial" "$PGDATA"
}

if [ ! -e "$PGDATA/PG_VERSION" ]; then
	copy
elif lost; then
	echo "copying the primary again"
	copy
fi
exec postgres -cprimary_conninfo="$primary" -cprimary_slot_name=replica "$@"
