#!/usr/bin/env bash
# Deploys to this machine with docker-compose.prod.yml, without losing a request; takes itself back when something is wrong.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

help() {
  cat <<'HELP'
Usage: ./deploy.sh [--rollback | --status | --help]

  ./deploy.sh                  build this checkout, migrate, replace the running release
  VERSION=1.4.0 USE_REGISTRY=true REGISTRY=ghcr.io/you ./deploy.sh
                               the same with an image that CI has pushed
  ./deploy.sh --rollback       back to the release before; nothing is built or migrated
  ./deploy.sh --status         what runs

What it does, in this order. Until step 5 clients notice nothing whatever fails, and after it the way back is one reload:

  1  looks for what it needs: docker, compose, .env.production, certificates; asks the image whether the settings are complete
  2  builds or pulls the image
  3  starts Postgres and Redis, migrates (the running release works on the new schema: every migration must leave it so)
  4  starts the idle colour beside the one that serves, and waits until all its containers are ready
  5  turns the edge around (a reload: streams that run go on), and tries it from outside
  6  replaces the worker
  7  ends the old colour: SIGTERM, and up to 60 s for its streams

A failure in 3 to 6 puts everything back as it was, says why, and ends with 1. What was migrated stays: it does no harm to the old release.

Environment:
  VERSION        tag of the image (default: the commit, with -dirty when it was changed)
  USE_REGISTRY   true: pull REGISTRY/ballast:VERSION instead of building
  REGISTRY       where images are (with USE_REGISTRY). Nothing here pushes them: that is yours to do, after CI has built and checked one
                 (`docker tag ballast:ci REGISTRY/ballast:VERSION`, `docker push`), with a name that is never used twice
  BUILD          false: take the image ballast:VERSION that is on this machine, and build nothing
  PROFILE        cargo profile of the build: release (default) or local (faster)
  ENV_FILE       default .env.production: cp .env.production.example .env.production; `ballast keygen` makes the secrets;
                 POSTGRES_PASSWORD and REDIS_PASSWORD (and GRAFANA_PASSWORD with the profile observability) by `openssl rand -hex 24`
  EDGE_DIR       default .edge: names and certificates of the edge; made from deploy/nginx/site when it is not there
  EDGE_URL       where the edge is tried (default: this machine, by the first server_name in EDGE_DIR/server.conf; the certificate is
                 not checked)
  HEALTH_TIMEOUT seconds for a new container to become ready (default 120)
HELP
}

env_file=${ENV_FILE:-.env.production}
edge_dir=${EDGE_DIR:-.edge}
patience=${HEALTH_TIMEOUT:-120}
state=$edge_dir/state

say() { printf '\n==> %s\n' "$*"; }
fail() {
  printf '\ndeploy: %s\n' "$*" >&2
  exit 1
}
# A setting that compose reads, too: from the environment, otherwise from the file.
setting() { # NAME
  local value=${!1:-}
  [ -n "$value" ] || value=$(sed -n "s/^$1=//p" "$env_file" | tail -n 1)
  value=${value#[\"\']}
  printf '%s' "${value%[\"\']}"
}
recorded() { sed -n "s/^$1=//p" "$state" 2> /dev/null || :; }

# Compose, with one release's image.
compose() { # IMAGE arguments...
  IMAGE=$1 ENV_FILE=$env_file EDGE_DIR=$edge_dir docker compose --env-file "$env_file" --file docker-compose.prod.yml \
    --profile edge --profile green --profile migrate "${@:2}"
}

prerequisites() {
  local missing=()
  docker version > /dev/null 2>&1 || missing+=("a Docker daemon that this user may talk to")
  docker compose version > /dev/null 2>&1 || missing+=("the compose plugin (apt-get install docker-compose-plugin)")
  command -v curl > /dev/null || missing+=("curl (apt-get install curl)")
  [ -f "$env_file" ] || missing+=("$env_file: cp .env.production.example $env_file, then fill it in; \`ballast keygen\` makes the secrets")
  if [ ! -d "$edge_dir" ]; then
    cp -R deploy/nginx/site "$edge_dir"
    mkdir -p "$edge_dir/tls"
    missing+=("names and certificates: $edge_dir was just made from deploy/nginx/site; put your host name into server.conf")
  fi
  if [ ! -f "$edge_dir/tls/fullchain.pem" ] || [ ! -f "$edge_dir/tls/privkey.pem" ]; then
    missing+=("certificates: $edge_dir/tls/fullchain.pem and privkey.pem")
  fi
  if [ "${USE_REGISTRY:-false}" = true ] && { [ -z "${REGISTRY:-}" ] || [ -z "${VERSION:-}" ]; }; then
    missing+=("REGISTRY and VERSION, with USE_REGISTRY=true")
  fi
  if [ ${#missing[@]} -gt 0 ]; then
    printf 'deploy: before this can work, it needs\n' >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 2
  fi
}

# What only compose reads, before anything is built.
check_passwords() {
  local value name names=(POSTGRES_PASSWORD REDIS_PASSWORD) wrong=()
  case ",$(setting COMPOSE_PROFILES)," in *,observability,*) names+=(GRAFANA_PASSWORD) ;; esac
  for name in "${names[@]}"; do
    value=$(setting "$name")
    if [ -z "$value" ]; then
      wrong+=("$name is missing")
    elif [ ${#value} -lt 24 ]; then
      wrong+=("$name is too weak: at least 24 characters")
    elif [[ $value == *[!A-Za-z0-9._~-]* ]]; then
      # It stands in DATABASE_URL and REDIS_URL, where other characters mean something.
      wrong+=("$name has characters that do not belong into a URL")
    fi
  done
  if [ ${#wrong[@]} -gt 0 ]; then
    printf '  - %s; make one: openssl rand -hex 24\n' "${wrong[@]}" >&2
    fail "the settings in $env_file are not right; nothing was changed"
  fi
}

# Compose names a variable of its own that is missing; the program names every one of its own, missing or weak.
check_settings() { # IMAGE
  local said code=0
  said=$(compose "$1" config --quiet 2>&1) || {
    printf '%s\n' "$said" >&2
    fail "$env_file is not complete; nothing was changed"
  }
  compose "$1" run --rm --no-deps -T api-blue doctor > /dev/null 2> "$state.problems" || code=$?
  if [ "$code" = 78 ]; then
    cat "$state.problems" >&2
    fail "the settings in $env_file are not right; nothing was changed"
  fi
  rm -f "$state.problems"
}

get_image() { # IMAGE
  if [ "${USE_REGISTRY:-false}" = true ]; then
    say "pulling $1"
    docker pull "$1" || fail "no image $1; nothing was changed"
  elif [ "${BUILD:-true}" = false ]; then
    docker image inspect "$1" > /dev/null 2>&1 || fail "no image $1 on this machine; nothing was changed"
  else
    say "building $1"
    docker build --tag "$1" --build-arg "PROFILE=${PROFILE:-release}" --build-arg "VERSION=$VERSION" \
      --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)" . || fail "the build failed; nothing was changed"
  fi
}

# Waits until every container of a service is healthy; says what it sees when one is not.
healthy() { # IMAGE SERVICE
  local deadline=$((SECONDS + patience)) ids states
  while [ "$SECONDS" -lt "$deadline" ]; do
    ids=$(compose "$1" ps --all --quiet "$2")
    if [ -n "$ids" ]; then
      # shellcheck disable=SC2086 # one word for each container
      states=$(docker inspect --format '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}' $ids)
      grep -qv "^running healthy$" <<< "$states" || return 0
      if grep -q '^\(exited\|dead\|restarting\)' <<< "$states"; then break; fi
    fi
    sleep 1
  done
  printf '\n%s is not healthy:\n' "$2" >&2
  compose "$1" ps --all "$2" >&2 || :
  compose "$1" logs --no-log-prefix --tail=30 "$2" >&2 || :
  return 1
}

# The edge sends new requests to this colour from now on.
point_edge_at() { # IMAGE COLOUR
  local before=$edge_dir/replicas.conf.before
  cp "$edge_dir/replicas.conf" "$before" 2> /dev/null || :
  printf '# Written by deploy.sh: the colour that serves.\nserver api-%s:8080 max_fails=3 fail_timeout=10s;\n' "$2" > "$edge_dir/replicas.conf"
  if [ -n "$(compose "$1" ps --quiet --status running edge)" ]; then
    if ! compose "$1" exec -T edge nginx -t -q; then
      [ ! -f "$before" ] || cp "$before" "$edge_dir/replicas.conf"
      return 1
    fi
    compose "$1" exec -T edge nginx -s reload
  else
    compose "$1" up --detach --no-deps edge
  fi
}

# The first name in server.conf: the edge answers no other.
edge_name() {
  local name
  name=$(sed -n 's/^[[:space:]]*server_name[[:space:]]\{1,\}\([^[:space:];]*\).*/\1/p' "$edge_dir/server.conf" | head -n 1)
  case $name in '' | _) printf 'localhost' ;; *) printf '%s' "$name" ;; esac
}

# From outside: ready, and closed to strangers. By the edge's name, whatever DNS says of it, on this machine.
smoke() {
  local deadline=$((SECONDS + 20)) ready='' stranger='' name port url=${EDGE_URL:-} where=()
  if [ -z "$url" ]; then
    name=$(edge_name)
    url=https://$name
    port=$(setting EDGE_HTTPS_PORT)
    port=${port:-443}
    where=(--noproxy '*' --connect-to "$name:443:127.0.0.1:${port##*:}")
  fi
  while [ "$SECONDS" -lt "$deadline" ]; do
    ready=$(status_of "${where[@]}" "$url/readyz")
    stranger=$(status_of "${where[@]}" "$url/v1/me")
    if [ "$ready" = 200 ] && [ "$stranger" = 401 ]; then return 0; fi
    sleep 1
  done
  printf '\nsmoke test at %s: /readyz is answered %s (wanted 200), /v1/me without a token %s (wanted 401)\n' "$url" "$ready" "$stranger" >&2
  return 1
}
status_of() { # curl options..., address
  curl --insecure --silent --output /dev/null --max-time 5 --write-out '%{http_code}' "$@" || :
}

end_colour() { # IMAGE COLOUR
  compose "$1" stop "api-$2" > /dev/null 2>&1 || :
  compose "$1" rm --force "api-$2" > /dev/null 2>&1 || :
}

# Replaces the running release with IMAGE; what runs stays when that does not work.
replace() { # IMAGE
  local image=$1 old new old_image
  old=$(recorded colour)
  old_image=$(recorded image)
  if [ "$old" = blue ]; then new=green; else new=blue; fi

  say "starting api-$new${old:+ beside api-$old}"
  end_colour "$image" "$new"
  compose "$image" up --detach --no-deps "api-$new"
  if ! healthy "$image" "api-$new"; then
    end_colour "$image" "$new"
    fail "the new release does not become ready${old:+; the old one serves as before}"
  fi

  say "turning the edge to api-$new"
  if ! point_edge_at "$image" "$new" || ! smoke; then
    [ -z "$old" ] || point_edge_at "$image" "$old" || :
    end_colour "$image" "$new"
    fail "the new release does not answer at the edge as it should${old:+; the old one serves again}"
  fi

  say "replacing the worker"
  compose "$image" up --detach --no-deps worker
  if ! healthy "$image" worker; then
    if [ -n "$old" ]; then
      point_edge_at "$image" "$old" || :
      compose "$old_image" up --detach --no-deps worker
    fi
    end_colour "$image" "$new"
    fail "the new worker does not become ready${old:+; the old release serves again}"
  fi

  printf 'colour=%s\nimage=%s\nprevious=%s\nsince=%s\n' "$new" "$image" "$old_image" "$(date -u +%FT%TZ)" > "$state"
  if [ -n "$old" ]; then
    say "ending api-$old: its streams have up to 60 s"
    # What the edge had already sent there arrives first.
    sleep 2
    end_colour "$old_image" "$old"
  fi
  say "$image serves, in $new"
}

case ${1:-} in
  '') ;;
  --rollback)
    prerequisites
    previous=$(recorded previous)
    [ -n "$previous" ] || fail "there is no release before this one"
    docker image inspect "$previous" > /dev/null 2>&1 || fail "the image $previous is gone; VERSION=... ./deploy.sh makes it again"
    replace "$previous"
    exit 0
    ;;
  --status)
    [ -f "$state" ] || fail "nothing was deployed from here yet"
    cat "$state"
    compose "$(recorded image)" ps
    exit 0
    ;;
  -h | --help) help && exit 0 ;;
  *)
    printf 'deploy: no option %s (see --help)\n' "$1" >&2
    exit 2
    ;;
esac

prerequisites
VERSION=${VERSION:-$(git describe --always --dirty 2> /dev/null || date -u +%Y%m%d%H%M%S)}
image=ballast:$VERSION
check_passwords
[ "${USE_REGISTRY:-false}" != true ] || image=$REGISTRY/$image
get_image "$image"
say "checking the settings"
check_settings "$image"
say "Postgres and Redis"
compose "$image" up --detach --no-recreate postgres redis
healthy "$image" postgres || fail "Postgres does not start; nothing was replaced"
healthy "$image" redis || fail "Redis does not start; nothing was replaced"
say "migrating"
compose "$image" run --rm -T migrate || fail "the migration failed; the old release serves as before, on the schema it had"
replace "$image"
