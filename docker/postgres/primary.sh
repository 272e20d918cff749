#!/bin/sh
# Runs once, when the primary's data is made: the program's role and database, the role
# of read replicas, and who may come in.
set -eu

psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres <<'SQL'
\set password `printenv POSTGRES_PASSWORD`
create role app login password :'password';
create role replica login replication password :'password';
create database app owner app;
SQL

# The superuser only from within this container; everybody else with the password, by
# address or by the socket on its volume.
cat >"$PGDATA/pg_hba.conf" <<'HBA'
local all         postgres     peer
local all         all          scram-sha-256
host  app         app      all scram-sha-256
host  replication replica  all scram-sha-256
HBA
