#!/usr/bin/env bash
# A new machine, up to a running stack: macOS, Debian, Ubuntu, WSL2. Safe to run again; says what it does, asks before it installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  -h | --help)
    cat <<'HELP'
Usage: scripts/dev-setup.sh [--yes]

  1  Rust, by rustup, if there is none
  2  a C compiler, if there is none (Debian, Ubuntu: apt-get; macOS: the command line tools)
  3  builds the project, finds or installs Postgres and Redis, starts the stack, tries it, stops it

--yes answers yes to every question. Takes about ten minutes on a bare machine; most of that is the first build.
HELP
    exit 0
    ;;
  --yes) yes=--yes ;;
  '') yes='' ;;
  *)
    printf 'no option %s (see --help)\n' "$1" >&2
    exit 2
    ;;
esac

say() { printf '\n==> %s\n' "$*"; }
agreed() {
  [ -z "$yes" ] || return 0
  [ -t 0 ] || return 1
  read -r -p "$1 [y/N] " answer
  case $answer in y | Y | yes) ;; *) return 1 ;; esac
}

case $PWD in
  /mnt/[a-z]/*)
    printf 'This checkout is on the Windows drive: every build there is many times slower. Clone it below ~ inside WSL.\n' >&2
    exit 2
    ;;
esac

if ! command -v cargo > /dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
if ! command -v cargo > /dev/null; then
  say "Rust is missing"
  agreed "Install rustup from https://sh.rustup.rs?" || { printf 'See https://rustup.rs, then come again.\n' >&2; exit 2; }
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
  PATH=$HOME/.cargo/bin:$PATH
fi

if ! command -v cc > /dev/null; then
  say "A C compiler is missing"
  if [ "$(uname)" = Darwin ]; then
    printf 'Run "xcode-select --install", then come again.\n' >&2
    exit 2
  fi
  sudo=''
  [ "$(id -u)" = 0 ] || sudo=sudo
  agreed "Run: $sudo apt-get install gcc libc6-dev?" || { printf 'Install gcc, then come again.\n' >&2; exit 2; }
  $sudo apt-get update -qq
  $sudo apt-get install -y --no-install-recommends gcc libc6-dev
fi

say "Building, and trying the stack"
# shellcheck disable=SC2086 # nothing, or one word
cargo stack --detach $yes
cargo stack --try
cargo stack --stop

say "Ready. \`cargo stack\` runs it, \`cargo verify --quick\` checks while you work; README.md has the rest."
