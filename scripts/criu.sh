#!/usr/bin/env bash
# Puts Debian's newer criu into a folder, with the libraries it needs, for hosts whose own is missing or too old for their kernel.
# Nothing is installed: FOLDER/criu runs from there.
#
# usage: criu.sh FOLDER
# env:   CRIU_SUITE  the Debian release it is taken from (trixie)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:---help} in -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;; esac
command -v apt-get >/dev/null || die "there is no apt-get here"
mkdir -p "$1"
to=$(cd "$1" && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{etc/apt.conf.d,etc/preferences.d,state/lists/partial,cache/archives/partial}
: >"$work/status"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian ${CRIU_SUITE:-trixie} main" >"$work/etc/sources.list"
# An apt of its own: with nothing installed, every library down to the C one is fetched.
cat >"$work/apt.conf" <<CONF
Dir::Etc "$work/etc"; Dir::Etc::sourcelist "$work/etc/sources.list"; Dir::Etc::sourceparts "-";
Dir::State "$work/state"; Dir::State::status "$work/status"; Dir::Cache "$work/cache"; APT::Sandbox::User "root";
CONF
export APT_CONFIG=$work/apt.conf
{ apt-get update && apt-get install -y --download-only --no-install-recommends criu; } >"$work/log" 2>&1 || die "criu cannot be fetched" "$work/log"
rm -rf "$to/root"
for package in "$work"/cache/archives/*.deb; do dpkg -x "$package" "$to/root"; done
libraries=$(dirname "$(find "$to/root" -name libc.so.6 | head -n 1)")
program=$(find "$to/root" -path '*bin/criu' | head -n 1)
[ -n "$program" ] || die "there is no criu in the packages"
printf '#!/bin/sh\nexec "%s"/ld-linux-*.so.* --library-path "%s" "%s" "$@"\n' "$libraries" "$libraries" "$program" >"$to/criu"
chmod 755 "$to/criu"
"$to/criu" --version | head -n 1
