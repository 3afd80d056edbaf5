#!/usr/bin/env bash
# Backups of Postgres in an S3 bucket, and the proof that they can be restored.
set -euo pipefail

help() {
  cat <<'HELP'
Usage: backup dump | list | verify [NAME] | restore [NAME] | drill [NAME]

  dump      pg_dump of DATABASE_URL, with a manifest (checksum, rows per table), into the bucket
  list      what is in the bucket, oldest first
  verify    fetch one, check the checksum, read its table of contents
  restore   into RESTORE_DATABASE_URL, which must be empty; compares the rows of every table
  drill     all of it, into a scratch server of its own that is gone afterwards: restores, compares, starts `ballast api` on it,
            logs in as DRILL_EMAIL with DRILL_PASSWORD, prints how long that took (RTO) and how old the data is (RPO)

NAME is one of `list`; without it the newest.

Environment:
  DATABASE_URL                            dump
  S3_ENDPOINT                             https://s3.eu-central-1.amazonaws.com, or any S3-compatible one
  S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY
  S3_REGION                               default us-east-1
  S3_PREFIX                               default ballast/
  RESTORE_DATABASE_URL                    restore
  DRILL_EMAIL, DRILL_PASSWORD             drill: an account that exists in the backup

Needs bash, curl 7.87, sha256sum, and pg_dump, pg_restore and psql that are at least as new as the server; drill also initdb and ballast.
Old backups are removed by a lifecycle rule of the bucket, so that this key needs no right to delete.
Exit codes: 0 done, 1 failed, 2 something is missing.
HELP
}

say() { printf 'backup: %s\n' "$*"; }
fail() {
  printf 'backup: %s\n' "$*" >&2
  exit 1
}
need() { # NAME...
  local name missing=()
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing+=("$name")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    printf 'backup: not set: %s (see --help)\n' "${missing[*]}" >&2
    exit 2
  fi
}

work=$(mktemp -d)
server='' api=''
cleanup() {
  [ -z "$api" ] || kill "$api" 2>/dev/null || :
  [ -z "$server" ] || unprivileged pg_ctl --pgdata="$server" --mode=immediate --silent stop || :
  rm -rf "$work"
}
trap cleanup EXIT

# Postgres refuses to run as root.
unprivileged() {
  if [ "$(id -u)" = 0 ]; then runuser -u postgres -- env PATH="$PATH" "$@"; else "$@"; fi
}

# ---- The bucket. Requests are signed by curl; the secret comes by a file, so that no list of processes shows it.

bucket() {
  need S3_ENDPOINT S3_BUCKET S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY
  S3_REGION=${S3_REGION:-us-east-1} S3_PREFIX=${S3_PREFIX-ballast/}
  printf 'user = "%s:%s"\naws-sigv4 = "aws:amz:%s:s3"\n' "$S3_ACCESS_KEY_ID" "$S3_SECRET_ACCESS_KEY" "$S3_REGION" > "$work/curl.conf"
}
s3() { # curl options..., address inside the bucket
  local path=${*: -1}
  curl --config "$work/curl.conf" --silent --show-error --fail --retry 3 --connect-timeout 10 --max-time 3600 \
    --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "${@:1:$#-1}" "${S3_ENDPOINT%/}/$S3_BUCKET/${path#/}"
}
put() { s3 --output /dev/null --upload-file "$1" "$S3_PREFIX$2"; }
get() { s3 --output "$1" "$S3_PREFIX$2"; }
names() { # of complete backups, oldest first: the manifest is written last
  local encoded=${S3_PREFIX//\//%2F}
  s3 "/?list-type=2&prefix=$encoded" | tr '<' '\n' | sed -n "s|^Key>${S3_PREFIX}\(.*\)\.manifest\$|\1|p" | LC_ALL=C sort
}
newest() {
  local name
  name=$(names | tail -n 1)
  [ -n "$name" ] || fail "there is no backup in $S3_BUCKET/$S3_PREFIX"
  printf '%s\n' "$name"
}

# ---- The commands.

# Exact, from every ordinary table outside the catalogue; one line each: `public.users 42`.
counts_sql="select format('select %L || '' '' || count(*) from %I.%I;', schemaname || '.' || tablename, schemaname, tablename)
  from pg_tables where schemaname not in ('pg_catalog', 'information_schema') order by 1"

dump() {
  need DATABASE_URL
  bucket
  local name started=$SECONDS
  name=$(date -u +%Y%m%dT%H%M%SZ)
  say "dumping to $name"
  # One snapshot for the dump and for the counts, so that both speak of the same moment.
  psql "$DATABASE_URL" --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 > "$work/counts" <<SQL
begin isolation level repeatable read read only;
select pg_export_snapshot() as snapshot \gset
\setenv BALLAST_SNAPSHOT :snapshot
\! pg_dump "\$DATABASE_URL" --snapshot="\$BALLAST_SNAPSHOT" --format=custom --compress=6 --no-owner --no-privileges --file='$work/dump' || rm -f '$work/dump'
$counts_sql
\gexec
commit;
SQL
  [ -s "$work/dump" ] || fail "pg_dump failed; nothing was stored"
  {
    printf 'name %s\ntaken_at %s\nserver %s\n' "$name" "$(date -u +%s)" \
      "$(psql "$DATABASE_URL" --no-psqlrc --tuples-only --no-align --command 'show server_version_num')"
    printf 'sha256 %s\nbytes %s\n' "$(sha256sum "$work/dump" | cut -d' ' -f1)" "$(stat --format=%s "$work/dump")"
    sed 's/^/rows /' "$work/counts"
  } > "$work/manifest"
  put "$work/dump" "$name.dump"
  put "$work/manifest" "$name.manifest"
  say "stored $name: $(stat --format=%s "$work/dump") bytes, $(wc -l < "$work/counts") tables, $((SECONDS - started)) s"
}

field() { sed -n "s/^$1 //p" "$work/manifest"; }

fetch() { # NAME
  say "fetching $1"
  get "$work/manifest" "$1.manifest"
  get "$work/dump" "$1.dump"
  [ "$(sha256sum "$work/dump" | cut -d' ' -f1)" = "$(field sha256)" ] || fail "$1: the checksum is wrong: the file is damaged"
  pg_restore --list "$work/dump" > "$work/contents" || fail "$1: the file is no dump"
}

verify() { # NAME
  fetch "$1"
  say "$1 is whole: $(field bytes) bytes, $(grep -c 'TABLE DATA' "$work/contents") tables with data"
}

load() { # address: restores what `fetch` brought, and compares
  local there
  there=$(psql "$1" --no-psqlrc --tuples-only --no-align --command \
    "select count(*) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')")
  [ "$there" = 0 ] || fail "the database to restore into has $there tables: it must be empty"
  pg_restore --dbname="$1" --no-owner --no-privileges --exit-on-error --jobs=2 "$work/dump"
  psql "$1" --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 > "$work/restored" <<SQL
$counts_sql
\gexec
SQL
  field rows > "$work/expected"
  diff "$work/expected" "$work/restored" > "$work/difference" || {
    cat "$work/difference" >&2
    fail "the rows differ from those that were dumped"
  }
  say "restored: $(wc -l < "$work/restored") tables, $(awk '{ n += $2 } END { print n + 0 }' "$work/restored") rows, as in the manifest"
}

restore() { # NAME
  need RESTORE_DATABASE_URL
  fetch "$1"
  load "$RESTORE_DATABASE_URL"
  say "next: point DATABASE_URL at it, then \`ballast migrate up\` and \`ballast doctor\`"
}

free_port() { # one that nobody listens on
  local port
  for port in $(seq $((20000 + RANDOM % 20000)) 60000); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  printf '%s\n' "$port"
}

drill() { # NAME
  need DRILL_EMAIL DRILL_PASSWORD
  command -v initdb > /dev/null || fail "initdb is not on PATH"
  command -v ballast > /dev/null || fail "ballast is not on PATH"
  local started=$SECONDS address port status
  fetch "$1"
  server=$work/server
  chmod 711 "$work"
  install -d -m 700 "$server"
  if [ "$(id -u)" = 0 ]; then chown postgres "$server"; fi
  unprivileged initdb --pgdata="$server" --username=ballast --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync > /dev/null
  # Reached by its socket only; the API's client wants a port, so there is one on loopback.
  port=$(free_port)
  unprivileged pg_ctl --pgdata="$server" --silent --wait --log="$server/log" \
    --options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=$server -c fsync=off" start
  address=postgres://ballast@127.0.0.1:$port/restored
  createdb --host=127.0.0.1 --port="$port" --username=ballast restored
  load "$address"
  # A release newer than the backup migrates first, as it would for real.
  DATABASE_URL=$address DATABASE_DIRECT_URL='' ballast migrate up > /dev/null
  port=$(free_port)
  # Sample secrets, no Redis and no engine: none of them is needed for a login.
  env -u RAILWAY_ENVIRONMENT_NAME APP_ENV=development HOST=127.0.0.1 PORT="$port" DATABASE_URL="$address" DATABASE_DIRECT_URL='' \
    REDIS_URL=redis://127.0.0.1:1 ENGINE_URL=http://127.0.0.1:1/v1 ADMIN_PORT='' ballast api > "$work/api.log" 2>&1 &
  api=$!
  for _ in $(seq 150); do
    kill -0 "$api" 2>/dev/null || break
    curl --silent --fail --output /dev/null "http://127.0.0.1:$port/readyz" && break
    sleep 0.2
  done
  # By standard input: the password is in no list of processes.
  status=$(printf '{"email":"%s","password":"%s"}' "$(escaped "$DRILL_EMAIL")" "$(escaped "$DRILL_PASSWORD")" \
    | curl --silent --output /dev/null --write-out '%{http_code}' --max-time 20 --header 'content-type: application/json' \
      --data @- "http://127.0.0.1:$port/v1/auth/login" || :)
  if [ "$status" != 200 ]; then
    tail -n 20 "$work/api.log" >&2
    fail "the login on the restored data was answered with ${status:-nothing}"
  fi
  say "logged in on the restored data"
  say "RTO $((SECONDS - started)) s (fetch, restore, start, login); RPO $(($(date -u +%s) - $(field taken_at))) s (age of the data)"
}
escaped() { printf '%s' "$1" | sed 's/[\\"]/\\&/g'; }

case ${1:---help} in
  dump) dump ;;
  list) bucket && names ;;
  verify | restore | drill)
    bucket
    command=$1 name=${2:-$(newest)}
    "$command" "$name"
    ;;
  -h | --help | help) help ;;
  *)
    printf 'backup: no command %s (see --help)\n' "$1" >&2
    exit 2
    ;;
esac
