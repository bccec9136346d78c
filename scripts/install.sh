#!/usr/bin/env bash
# Installs the built programs, systemd units, configuration, man pages and completions. Configuration that is there is kept.
#
# usage: install.sh            env: PREFIX (/usr/local), DESTDIR (empty), GANTRY_BIN_DIR (target/gantry/bin, from scripts/build.sh)
#        install.sh --remove   removes what it installed but configuration and data
set -euo pipefail
. "$(dirname "$0")/lib.sh"
PREFIX=${PREFIX:-/usr/local} DESTDIR=${DESTDIR:-}
from=$ROOT/packaging
lib=$PREFIX/lib/gantry
remove=
case ${1:-} in -h|--help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit ;; --remove) remove=1 ;; '') ;; *) die "unknown argument $1 (see --help)" ;; esac
programs=(gantry-apiserver gantry-cri gantry-monitor gantry-run gantry-cni kubelet)
# The overlay agent is an ordinary program of the node, but not every build has it.
[ ! -x "$BIN_DIR/gantry-overlay" ] || programs+=(gantry-overlay)
units=(gantry-apiserver gantry-cri gantry-pods kubelet gantry-overlay)
list=$lib/installed

if [ -n "$remove" ]; then
  step "Removing"
  [ -s "$DESTDIR$list" ] || die "nothing is installed below $DESTDIR$PREFIX"
  while IFS= read -r f; do rm -f "$DESTDIR$f"; done <"$DESTDIR$list"
  rm -f "$DESTDIR$list"
  rmdir "$DESTDIR$lib" 2>/dev/null || true
  good "done; configuration in $DESTDIR/etc/gantry and data in $DESTDIR/var/lib/gantry stay"
  exit
fi

step "Installing into ${DESTDIR:-/} with prefix $PREFIX"
for p in "${programs[@]}"; do [ -x "$BIN_DIR/$p" ] || die "$BIN_DIR/$p is missing: run scripts/build.sh"; done
installed=$(mktemp) || exit 1
trap 'rm -f "$installed"' EXIT
put() { # mode from to: a file of the program
  install -D -m "$1" "$2" "$DESTDIR$3" && echo "$3" >>"$installed"
}
filled() { # mode from to: the same with the folders filled in
  local text; text=$(mktemp)
  sed "s|@BIN@|$PREFIX/bin|g; s|@LIB@|$lib|g" "$2" >"$text" && put "$1" "$text" "$3" && rm -f "$text"
}
config() { # from to: a file of the administrator's
  [ -e "$DESTDIR$2" ] || install -D -m 644 "$1" "$DESTDIR$2"
}

for p in "${programs[@]}"; do put 755 "$BIN_DIR/$p" "$PREFIX/bin/$p"; done
filled 755 "$from/lib/node-credentials" "$lib/node-credentials"
filled 755 "$from/lib/end-pods" "$lib/end-pods"
for u in "${units[@]}"; do
  [ "$u" != gantry-overlay ] || [ -x "$BIN_DIR/gantry-overlay" ] || continue
  filled 644 "$from/systemd/$u.service" "$PREFIX/lib/systemd/system/$u.service"
  [ ! -f "$from/etc/default/$u" ] || config "$from/etc/default/$u" "/etc/default/$u"
done
# tmpfiles.d and modules-load.d are read from /usr/local/lib too, sysctl.d likewise.
put 644 "$from/tmpfiles.d/gantry.conf" "$PREFIX/lib/tmpfiles.d/gantry.conf"
put 644 "$from/sysctl.d/60-gantry.conf" "$PREFIX/lib/sysctl.d/60-gantry.conf"
config "$from/apparmor.d/gantry-default" /etc/apparmor.d/gantry-default
put 644 "$from/modules-load.d/gantry.conf" "$PREFIX/lib/modules-load.d/gantry.conf"

install -d -m 755 "$DESTDIR/etc/gantry/certs.d" "$DESTDIR/etc/kubernetes/manifests" "$DESTDIR/etc/kubernetes/pki" "$DESTDIR/opt/cni/bin"
install -d -m 755 "$DESTDIR/var/lib/kubelet" "$DESTDIR/etc/cni/net.d"
config "$from/etc/gantry/cri.toml" /etc/gantry/cri.toml
config "$from/etc/crictl.yaml" /etc/crictl.yaml
config "$from/kubelet/config.yaml" /var/lib/kubelet/config.yaml
# Another network that is configured already stays the only one.
if ! ls "$DESTDIR"/etc/cni/net.d/*.conf "$DESTDIR"/etc/cni/net.d/*.conflist >/dev/null 2>&1; then
  config "$from/etc/cni/net.d/10-gantry.conflist" /etc/cni/net.d/10-gantry.conflist
fi
for plugin in $("$BIN_DIR/gantry-cni" --list); do
  ln -sfn "$PREFIX/bin/gantry-cni" "$DESTDIR/opt/cni/bin/$plugin" && echo "/opt/cni/bin/$plugin" >>"$installed"
done

docs=$(mktemp -d) || exit 1
trap 'rm -rf "$installed" "$docs"' EXIT
"$from/man/generate" "$docs" "${programs[@]/#/$BIN_DIR/}"
for page in "$docs"/*.8; do put 644 "$page" "$PREFIX/share/man/man8/$(basename "$page")"; done
for c in "$docs"/completions/*; do put 644 "$c" "$PREFIX/share/bash-completion/completions/$(basename "$c")"; done
put 644 "$ROOT/LICENSE" "$PREFIX/share/doc/gantry/copyright"
put 644 "$ROOT/README.md" "$PREFIX/share/doc/gantry/README.md"
install -D -m 644 "$installed" "$DESTDIR$list"
good "$(wc -l <"$installed") files"
[ -n "$DESTDIR" ] || note "next: systemctl daemon-reload && systemd-tmpfiles --create && systemctl enable --now gantry-apiserver gantry-cri kubelet"
