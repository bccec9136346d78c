#!/usr/bin/env bash
# Packs the built programs as target/gantry_VERSION_amd64.deb and prints its path.
#
# usage: package.sh [--version VERSION]     env: GANTRY_BIN_DIR (target/gantry/bin, from scripts/build.sh), OUT (target)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
case ${1:-} in -h|--help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit ;; --version) version=$2 ;; '') ;; *) die "unknown argument $1 (see --help)" ;; esac
OUT=${OUT:-$ROOT/target}
command -v dpkg-deb >/dev/null || die "dpkg-deb is missing: packages are made on Debian or Ubuntu"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
tree=$work/tree
DESTDIR=$tree PREFIX=/usr "$ROOT/scripts/install.sh" >"$work/log" 2>&1 || die "scripts/install.sh failed" "$work/log"
# dpkg keeps the lists of files itself, links to plugins belong to the maintainer scripts (another package may have some of
# them), and the kubelet's configuration lies in a data folder, where dpkg would not take it for configuration.
rm -rf "$tree/usr/lib/gantry/installed" "$tree/opt"
install -D -m 644 "$tree/var/lib/kubelet/config.yaml" "$tree/usr/share/gantry/kubelet-config.yaml"
rm -rf "$tree/var"
gzip -9n "$tree"/usr/share/man/man8/*.8
if command -v strip >/dev/null; then strip --strip-unneeded "$tree"/usr/bin/*; fi
mkdir -p "$tree/DEBIAN"
sed "s|@VERSION@|$version|; s|@SIZE@|$(du -sk --exclude=DEBIAN "$tree" | cut -f1)|" "$ROOT/packaging/debian/control.in" >"$tree/DEBIAN/control"
install -m 755 "$ROOT"/packaging/debian/{postinst,prerm,postrm} "$tree/DEBIAN/"
(cd "$tree" && find etc -type f | sort | sed 's|^|/|') >"$tree/DEBIAN/conffiles"
chmod -R u=rwX,go=rX "$tree" && chmod 755 "$tree"
mkdir -p "$OUT"
deb=$OUT/gantry_${version}_amd64.deb
dpkg-deb --root-owner-group -Zxz -z1 --build "$tree" "$deb.tmp" >"$work/log" 2>&1 || die "dpkg-deb failed" "$work/log"
mv "$deb.tmp" "$deb"
echo "$deb"
