#!/usr/bin/env bash
# Dumps the databases of this server into /backups/database, each dump whole or not there at all; with
# `restore` puts the latest dumps back, in place of what is there.
#   BACKUP_SECONDS: between two dumps; 0 for one.   BACKUP_KEEP: how many of each database stay.
set -euo pipefail
umask 077
mkdir -p /backups/database
rm -f /backups/database/*.part # of a dump that failed
export PGDATABASE=${PGDATABASE:-mlflow}

until pg_isready --quiet; do # where all is started at once, Postgres takes longer than this
  [ "$SECONDS" -lt 120 ] || { echo "Postgres at ${PGHOST:-localhost} does not answer" >&2; exit 1; }
  sleep 2
done

dumps() { find /backups/database -name "$1-*.dump" | sort -r; }

dump() {
  local file
  file=/backups/database/$1-$(date -u +%Y%m%dT%H%M%SZ).dump
  pg_dump --format=custom --dbname="$1" --file="$file.part"
  mv "$file.part" "$file"
  echo "$file: $(stat -c %s "$file") bytes"
  dumps "$1" | tail -n "+$((${BACKUP_KEEP:-14} + 1))" | xargs -r rm --
}

restore() {
  local file
  file=$(dumps "$1" | head -n 1)
  [ -n "$file" ] || return 0
  pg_restore --clean --if-exists --no-owner --no-privileges --single-transaction --dbname="$1" "$file"
  echo "$1: restored from $file"
}

# MLflow's, and the journal's where there is one.
databases() {
  psql --tuples-only --no-align \
    --command="select datname from pg_database where datname in (current_database(), 'agentcore') order by 1"
}

if [ "${1:-}" = restore ]; then
  [ -n "$(dumps "$PGDATABASE")" ] || { echo "no dump of $PGDATABASE in /backups/database" >&2; exit 1; }
  found=$(databases)
  for database in $found; do restore "$database"; done
  exit 0
fi
while true; do
  found=$(databases)
  for database in $found; do dump "$database"; done
  [ "${BACKUP_SECONDS:-0}" = 0 ] && exit 0
  sleep "$BACKUP_SECONDS" & wait $! # so that a signal ends it at once
done
