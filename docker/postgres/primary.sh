#!/bin/sh
# Runs once, when the primary's data directory is created. It creates the app's role and
# database and the role of read replicas, and writes the access rules (pg_hba.conf).
set -eu

psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres <<'SQL'
\set password `printenv POSTGRES_PASSWORD`
create role app login password :'password';
create role replica login replication password :'password';
create database app owner app;
SQL

# The superuser can connect only from within this container. All other roles need the password,
# over TCP or over the socket on its volume.
cat >"$PGDATA/pg_hba.conf" <<'HBA'
local all         postgres     peer
local all         all          scram-sha-256
host  app         app      all scram-sha-256
host  replication replica  all scram-sha-256
HBA
