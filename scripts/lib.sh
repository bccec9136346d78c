# Shared by the scripts: messages, requirements, progress. Sourced, never run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN_DIR=${GANTRY_BIN_DIR:-$ROOT/target/gantry/bin}

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m' tty=1; else bold='' red='' green='' plain='' tty=''; fi

step_name=start
step() { step_name=$1; printf '%s==>%s %s\n' "$bold" "$plain" "$1"; }
note() { printf '    %s\n' "$*"; }
good() { printf '    %s%s%s\n' "$green" "$*" "$plain"; }
die() { # message [log file]
  printf '%serror:%s %s (step: %s)\n' "$red" "$plain" "$1" "$step_name" >&2
  if [ -n "${2:-}" ] && [ -s "$2" ]; then
    printf '    the end of %s:\n' "$2" >&2
    tail -n 15 "$2" | sed 's/^/    | /' >&2
  fi
  exit 1
}

need_root() { [ "$(id -u)" = 0 ] || die "this needs root: run it with sudo"; }

# Installs the Debian packages that are missing: need_packages PACKAGE...
need_packages() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get here: ${missing[*]}"
  note "installing ${missing[*]}"
  local log; log=$(mktemp) || exit 1
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    die "apt-get could not install ${missing[*]}" "$log"
  fi
  rm -f "$log"
}

need_cargo() {
  command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
  command -v cargo >/dev/null || die "cargo is missing. Install Rust 1.95 or newer with rustup (Debian: apt-get install rustup && rustup default stable; elsewhere: https://rustup.rs) and run this again"
}

# Runs a long command with its output in a log; shows elapsed time and the last line on a terminal: long LOG CMD...
long() {
  local log=$1 start=$SECONDS pid rc=0; shift
  "$@" >"$log" 2>&1 & pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    [ -z "$tty" ] || printf '\r\e[K    %3d s  %.100s' $((SECONDS - start)) "$(tail -n 1 "$log" 2>/dev/null | tr -d '\r')"
    sleep 1
  done
  [ -z "$tty" ] || printf '\r\e[K'
  wait "$pid" || rc=$?
  [ "$rc" = 0 ] || die "failed after $((SECONDS - start)) s: $*" "$log"
  note "done in $((SECONDS - start)) s"
}

# Waits until a command succeeds: wait_for SECONDS WHAT CMD...
wait_for() {
  local limit=$1 what=$2 start=$SECONDS; shift 2
  until "$@" >/dev/null 2>&1; do
    if [ $((SECONDS - start)) -ge "$limit" ]; then
      [ -z "$tty" ] || printf '\r\e[K'
      return 1
    fi
    [ -z "$tty" ] || printf '\r\e[K    waiting for %s  %d s' "$what" $((SECONDS - start))
    sleep 0.2
  done
  [ -z "$tty" ] || printf '\r\e[K'
}
