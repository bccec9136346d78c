# The OCI runtime's own test suite on machines with cgroup v2 and AppArmor: on n1 it makes cgroups by their files, on n2 by
# systemd. Sourced by run.sh.
# shellcheck shell=bash

# Those that depend on cgroups, AppArmor and the kernel; RUNTIME_PARTS chooses others (escape, wrong, mounts, ...).
PARTS=${RUNTIME_PARTS:-apparmor events inside life limits newer unified}

# The programs of the suite, built as scripts/test.sh builds them, so that there is nothing to build after it; what they are
# told apart by is the crate that they belong to. RUNTIME_TESTS names a folder that has them already.
suite() { # folder
  mkdir -p "$1"
  if [ -n "${RUNTIME_TESTS:-}" ]; then cp "$RUNTIME_TESTS"/* "$1"; return; fi
  need_cargo
  (cd "$ROOT" && cargo test --locked --workspace --exclude gantry-tests --no-run --message-format=json 2>"$work/cargo.log") |
    python3 -c 'import json, sys
for line in sys.stdin:
    m = json.loads(line) if line.startswith("{") else {}
    if m.get("executable") and m["target"]["kind"] == ["test"] and m["manifest_path"].endswith("/runtime/Cargo.toml"):
        print(m["target"]["name"], m["executable"])' >"$work/suite.list"
  [ -s "$work/suite.list" ] || { cat "$work/cargo.log"; return 1; }
  local name file
  # The others need what the machines lack (libseccomp, criu, RDT, SELinux).
  while read -r name file; do
    case " $PARTS " in *" $name "*) strip -g -o "$1/$name" "$file" || return ;; esac
  done <"$work/suite.list"
}

# Runs the suite on a machine and tells what found nothing to run on. runs NODE DRIVER PART...
runs() {
  local node=$1 driver=$2; shift 2
  vm_ssh_limit=1200 vm_ssh "$node" "cd /root/suite && for part in $*; do
      start=\$(date +%s)
      GANTRY_RUN=/root/suite/gantry-run CGROUP_DRIVER=$driver timeout 600 ./\$part --test-threads=2 --show-output >\$part.log 2>&1; code=\$?
      echo \"$driver \$part: \$(grep '^test result' \$part.log), \$((\$(date +%s) - start)) s\"
      grep '^skipped: ' \$part.log
      [ \$code = 0 ] || { grep -v '\\.\\.\\. ok\$' \$part.log | tail -n 60; failed=1; }
    done
    left=\$(grep runtime-case- /proc/self/mountinfo; find /sys/fs/cgroup -name '*rt-case-*'; systemctl list-units --all --no-legend | grep rt-case-; ls -d /tmp/runtime-case-* 2>/dev/null)
    [ -z \"\$left\" ] || { echo \"left behind: \$left\"; failed=1; }
    [ -z \"\$failed\" ]"
}

t_runtime() {
  suite "$work/suite"
  cp "$BIN_DIR/gantry-run" "$work/suite/"
  local parts files systemd node
  parts=$(cd "$work/suite" && ls | grep -v '^gantry-run$' | tr '\n' ' ')
  [ -n "${RUNTIME_TESTS:-}" ] || [ "$(wc -w <<<"$parts")" = "$(wc -w <<<"$PARTS")" ] || fail "parts of the suite are missing: $parts"
  tar -C "$work" -czf "$work/suite.tar" suite
  for node in n1 n2; do
    "$vm/copy.sh" $node "$work/suite.tar" vm:/root/ && on $node 'rm -rf /root/suite && tar -C /root -xf /root/suite.tar && rm /root/suite.tar'
  done
  runs n1 files "$parts" >"$work/files" 2>&1 & files=$!
  runs n2 systemd "$parts" >"$work/systemd" 2>&1 & systemd=$!
  local code=0
  wait $files || code=1
  wait $systemd || code=1
  cat "$work/files" "$work/systemd"
  for node in n1 n2; do on $node 'rm -rf /root/suite'; done
  [ $code = 0 ]
}

# A normal user's containers, started by the user's own systemd: only below it may a user move processes between cgroups.
t_rootless() {
  "$vm/copy.sh" n1 "$BIN_DIR/gantry-run" vm:/opt/rootless-run
  "$vm/copy.sh" n1 "$(dirname "${BASH_SOURCE[0]}")/rootless-user.sh" vm:/opt/rootless-user.sh
  on n1 'set -e
    trap "set +e; systemctl stop user@1001.service; userdel -r runner; rm -rf /run/systemd/user/rootless.service /run/systemd/system/user@.service.d /opt/rootless-*; systemctl daemon-reload" EXIT
    useradd -m -u 1001 -s /bin/sh runner; chmod 755 /opt/rootless-*
    # Without PAM nothing tells the user manager where it lives.
    mkdir -p /run/systemd/system/user@.service.d /run/systemd/user
    printf "[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\n" >/run/systemd/system/user@.service.d/place.conf
    printf "[Service]\nType=oneshot\nTimeoutStartSec=240\nExecStart=/bin/sh /opt/rootless-user.sh /opt/rootless-run\nStandardOutput=append:/home/runner/log\nStandardError=append:/home/runner/log\n" >/run/systemd/user/rootless.service
    systemctl daemon-reload; systemctl start user@1001.service
    code=0; runuser -u runner -- env XDG_RUNTIME_DIR=/run/user/1001 systemctl --user start rootless.service || code=$?
    cat /home/runner/log; exit $code'
}
