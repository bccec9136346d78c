#!/usr/bin/env bash
# Runs critest, the CRI validation suite of cri-tools, against gantry-cri and prints which specs failed and why.
# Ends with one line: N passed, N failed, N skipped.
#
# Needs root, Go and Debian. Everything happens in own network, mount and pid namespaces and in one temporary folder: a
# local registry stands in for every registry (a mirror for all hosts), its images are packed by `gantry-cri image build`
# from Debian packages, and the daemon runs with the CNI plugins of this project. Nothing is left behind.
#
# usage: conformance.sh [-h] [--on NODE] [critest flags...]     --on: in a machine that scripts/vm/up.sh started
# env:   GANTRY_BIN_DIR  programs to test (default: target/gantry/bin)   FOCUS   regexp of specs to run (default: all)
#        CRITEST         critest to use (default: built)                 SEED    order of the specs (default 1)
#        OUT             folder for logs and reports (default: none kept unless a spec fails)
#        WEBSOCKET=1     streaming specs over WebSocket in place of SPDY
#        LIMIT           seconds that the suite may take (default 1800)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h|--help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit ;; esac
CRI_TOOLS=v1.36.0
REGISTRY=127.0.0.1:5000
# The digest that critest expects of its image by digest: ours cannot have it, so a copy of critest is given ours.
FIXED_DIGEST=9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf
here=$(cd "$(dirname "$0")" && pwd)

# critest is the test program of a package in a module: a module of ours that requires it pins its version.
build_critest() {
  mkdir -p "$work/tools" && cd "$work/tools"
  printf 'module tools\ngo 1.24\nrequire sigs.k8s.io/cri-tools %s\n' "$CRI_TOOLS" >go.mod
  GOFLAGS=-mod=mod go test -c -o "$CRITEST" sigs.k8s.io/cri-tools/cmd/critest
}

outside() {
  local node=
  [ "${1:-}" != --on ] || { node=$2; shift 2; }
  step "Requirements"
  need_root
  need_packages ca-certificates curl dpkg gcc jq libc6-dev docker-registry iproute2 iptables nftables util-linux libpcre2-8-0 zlib1g libssl3
  local p
  for p in gantry-cri gantry-monitor gantry-run gantry-cni; do
    [ -x "$BIN_DIR/$p" ] || die "$BIN_DIR/$p is missing: run scripts/build.sh or set GANTRY_BIN_DIR"
  done
  work=$(mktemp -d /var/tmp/gantry-conformance.XXXXXX)
  trap 'rm -rf "$work"' EXIT
  if [ -z "${CRITEST:-}" ]; then
    export CRITEST=$ROOT/target/tools/critest-$CRI_TOOLS
    if [ ! -x "$CRITEST" ]; then
      command -v go >/dev/null || die "Go is missing, and CRITEST names no critest"
      mkdir -p "$(dirname "$CRITEST")"
      (build_critest) >"$work/go.log" 2>&1 || die "critest could not be built" "$work/go.log"
    fi
  fi
  # Unpacked, not installed: no service is started, and the other busybox may stay installed.
  (cd "$work" && apt-get download busybox nginx >apt.log 2>&1) || die "busybox and nginx could not be downloaded" "$work/apt.log"
  mkdir "$work/debian"
  for p in "$work"/*.deb; do dpkg -x "$p" "$work/debian"; done
  good "ready"
  local rc=0
  if [ -n "$node" ]; then on_machine "$node" "$@" || rc=$?; else apart both "$@" || rc=$?; fi
  exit "$rc"
}

# Runs a part of this script in namespaces of its own: apart images|suite|both [critest flags...]
apart() { WORK=$work unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private -- "$0" --inside "$@"; }

# The images are made here, the suite runs there: what it needs is copied, and the report comes back.
on_machine() { # node critest-flags...
  local node=$1 there=/var/tmp/gantry-conformance rc=0 out=${OUT:-$work/out}; shift
  apart images || return
  step "critest $CRI_TOOLS on $node"
  mkdir -p "$work/copy/scripts" "$out"
  cp "$here/lib.sh" "$here/conformance.sh" "$work/copy/scripts/"
  cp -r "$work"/{registry,critest,images.yaml,crictl.yaml} "$(command -v docker-registry)" "$work/copy/"
  # The suite loads AppArmor profiles through sudo, also when it is root.
  printf '#!/bin/sh\nexec "$@"\n' >"$work/copy/sudo" && chmod +x "$work/copy/sudo"
  tar -C "$work/copy" -czf "$work/copy.tar" .
  "$here/vm/exec.sh" "$node" "rm -rf $there && mkdir -p $there/out"
  "$here/vm/copy.sh" "$node" "$work/copy.tar" "vm:$there/copy.tar"
  "$here/vm/exec.sh" "$node" "cd $there && tar -xf copy.tar && PATH=$there:\$PATH WORK=$there OUT=$there/out FOCUS='${FOCUS:-}' SEED=${SEED:-1} LIMIT=${LIMIT:-1800} \
    WEBSOCKET=${WEBSOCKET:-} GANTRY_BIN_DIR=/usr/bin unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private -- \
    scripts/conformance.sh --inside suite $*" || rc=$?
  "$here/vm/copy.sh" "$node" "vm:$there/out/." "$out" && "$here/vm/exec.sh" "$node" "rm -rf $there"
  left=$rc OUT=$out summarise
}

# ---- images ----

with_libs() { # folder, program, path inside: with the shared objects that it needs
  local lib
  install -D -m 755 "$2" "$1$3"
  ldd "$2" | grep -oE '/[^ ]+' | while read -r lib; do
    mkdir -p "$1$(dirname "$lib")" && cp -L "$lib" "$1$lib"
  done
}

# A busybox system. Its applets are hard links: a spec masks /bin/ls, and must not mask all of busybox through a symlink.
base() { # folder
  local applet busybox=$work/debian/bin/busybox
  mkdir -p "$1"/{bin,etc,tmp,root,home,proc,sys,dev,usr/bin,usr/sbin,var/run,var/log,var/www}
  chmod 1777 "$1/tmp"
  with_libs "$1" "$busybox" /bin/busybox
  for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln "$1/bin/busybox" "$1/bin/$applet"; done
  # Two programs that specs run and Debian's busybox lacks.
  cat >"$1/bin/pgrep" <<'P'
#!/bin/sh
pids=$(pidof "$1") || exit 1
for pid in $pids; do echo "$pid"; done
P
  cat >"$1/bin/ipcs" <<'P'
#!/bin/sh
echo "------ Shared Memory Segments --------"
awk 'NR == 1 { print "key shmid owner perms bytes" } NR > 1 { printf "0x%08x %s %s %s %s\n", $1, $2, $8, $3, $4 }' /proc/sysvipc/shm
P
  chmod 755 "$1/bin/pgrep" "$1/bin/ipcs"
  printf 'root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nnobody:x:65534:65534::/home:/bin/false\n' >"$1/etc/passwd"
  printf 'root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n' >"$1/etc/group"
}

web() { # folder, port: nginx in front of one page
  base "$1"
  with_libs "$1" "$work/debian/usr/sbin/nginx" /usr/sbin/nginx
  mkdir -p "$1"/etc/nginx "$1"/var/lib/nginx "$1"/var/log/nginx "$1"/usr/share/nginx
  echo ok >"$1/var/www/index.html"
  cat >"$1/etc/nginx/nginx.conf" <<N
user nobody nogroup;
pid /var/run/nginx.pid;
worker_processes 1;
error_log /dev/stderr warn;
events { worker_connections 64; }
http { access_log /dev/stdout; server { listen $2; root /var/www; } }
N
}

# Packs a folder and pushes it under names: push FOLDER "REPO:TAG..." [flags of image build...]
push() {
  local folder=$1 names=$2 name repo url=http://$REGISTRY archive=$work/push digest file upload
  shift 2
  set -- --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
  "$BIN_DIR/gantry-cri" image build "$folder" --name "$REGISTRY/${names%% *}" -o "$archive.tar" "$@" >/dev/null
  rm -rf "$archive" && mkdir "$archive" && tar -xf "$archive.tar" -C "$archive"
  digest=$(jq -r '.manifests[0].digest' "$archive/index.json")
  for name in $names; do
    repo=${name%:*}
    for file in "$archive"/blobs/sha256/*; do
      upload=$(curl -fsS -D - -o /dev/null -X POST "$url/v2/$repo/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
      curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$file" "$upload&digest=sha256:${file##*/}"
    done
    curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
      --data-binary "@$archive/blobs/sha256/${digest#sha256:}" "$url/v2/$repo/manifests/${name##*:}"
  done
  last_digest=${digest#sha256:}
}

# The same system with one more file, so that each image has an id of its own.
variant() { # name
  cp -al "$work/base" "$work/$1" && echo "$1" >"$work/$1/$1"
}

push_images() {
  local e=e2e-test-images s=k8s-staging-cri-tools name version
  base "$work/base"
  push "$work/base" "$e/busybox:1.29-2" --cmd sh
  web "$work/web" 80 && push "$work/web" "$e/nginx:1.14-2" --cmd nginx --cmd -g --cmd 'daemon off;'
  web "$work/hostnet" 12003
  push "$work/hostnet" "$s/hostnet-nginx-$(dpkg --print-architecture):latest" --cmd nginx --cmd -g --cmd 'daemon off;'
  variant httpd && echo 'It works' >"$work/httpd/var/www/index.html"
  push "$work/httpd" "$e/httpd:2.4.39-4" --cmd sh --cmd -c --cmd 'echo httpd: resuming normal operations; exec httpd -f -p 80 -h /var/www'
  printf '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("Effective uid: %%d\\n", (int)geteuid()); }\n' >"$work/nnp.c"
  mkdir "$work/nnp" && cc -Os -static -s -o "$work/nnp/nnp" "$work/nnp.c" && chmod 4755 "$work/nnp/nnp"
  push "$work/nnp" "$e/nonewprivs:1.3" --entrypoint /nnp
  printf '#include <unistd.h>\nint main(void) { for (;;) pause(); }\n' >"$work/pause.c"
  mkdir "$work/pause" && cc -Os -static -s -o "$work/pause/pause" "$work/pause.c"
  for version in 3.6 3.8 3.9 3.10 3.10.1 3.10.2 3.11; do
    push "$work/pause" "pause:$version" --entrypoint /pause --user 65535:65535 --env "V=$version"
  done
  push "$work/base" "$s/test-image-user-uid:latest" --cmd sh --user 1002
  push "$work/base" "$s/test-image-user-username:latest" --cmd sh --user www-data
  push "$work/base" "$s/test-image-user-uid-group:latest" --cmd sh --user 1003:1004
  push "$work/base" "$s/test-image-user-username-group:latest" --cmd sh --user www-data:1004
  variant groups && cp --remove-destination "$work"/base/etc/{passwd,group} "$work/groups/etc"
  mkdir -p "$work/groups/home/default-user"
  echo 'default-user:x:1000:1000::/home/default-user:/bin/sh' >>"$work/groups/etc/passwd"
  printf 'default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n' >>"$work/groups/etc/group"
  push "$work/groups" "$s/test-image-predefined-group:latest" --cmd sh --user 1000
  for name in test-image-1 test-image-2 test-image-3 test-image-latest; do
    variant "$name" && push "$work/$name" "$s/$name:latest" --cmd sh
  done
  variant tags && push "$work/tags" "$s/test-image-tags:1 $s/test-image-tags:2 $s/test-image-tags:3" --cmd sh
  for name in test all; do variant "tag-$name" && push "$work/tag-$name" "$s/test-image-tag:$name" --cmd sh; done
  variant digest && push "$work/digest" "$s/test-image-digest:latest" --cmd sh
}

# ---- daemon and suite ----

start_registry() {
  cat >"$work/registry.yml" <<Y
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: $REGISTRY}
Y
  OTEL_TRACES_EXPORTER=none docker-registry serve "$work/registry.yml" >"$OUT/registry.log" 2>&1 &
  wait_for 60 "the registry" bash -c "exec 3<>/dev/tcp/${REGISTRY/:/\/}" || die "the registry does not answer" "$OUT/registry.log"
}

start_daemon() {
  mkdir -p "$work"/{certs.d/_default,net.d,cni}
  printf '[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$REGISTRY" >"$work/certs.d/_default/hosts.toml"
  "$BIN_DIR/gantry-cni" install "$work/cni" >/dev/null
  cat >"$work/net.d/10-test.conflist" <<J
{"cniVersion": "1.1.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {
    "type": "host-local", "dataDir": "$work/addresses", "ranges": [[{"subnet": "10.99.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
  cat >"$work/cri.toml" <<T
socket = "$work/cri.sock"
root = "$work/root"
state = "/run/gantry-conformance/cri"
runtime_root = "/run/gantry-conformance/run"
registry_config = "$work/certs.d"
cni_conf_dir = "$work/net.d"
cni_bin_dirs = ["$work/cni"]
nri_socket = "$work/nri.sock"
T
  setsid "$BIN_DIR/gantry-cri" --config "$work/cri.toml" >"$OUT/gantry-cri.log" 2>&1 &
  daemon_pid=$!
  wait_for 30 "the daemon" cri image ls || die "the daemon does not answer" "$OUT/gantry-cri.log"
}

cri() { "$BIN_DIR/gantry-cri" --config "$work/cri.toml" "$@"; }

# One line for each spec that failed, and counts.
summarise() {
  local specs='.[0].SpecReports[] | select(.LeafNodeType == "It")' n passed failed skipped
  jq -r "$specs"' | select(.State != "passed" and .State != "skipped") |
    "FAILED \(.ContainerHierarchyTexts | join(" / ")) / \(.LeafNodeText): \((.Failure.Message // "")[0:400] | gsub("\n"; " "))"' "$OUT/report.json"
  jq -r "$specs"' | select(.State == "skipped" and (.Failure.Message // "") != "") |
    "skipped \(.ContainerHierarchyTexts | join(" / ")) / \(.LeafNodeText): \(.Failure.Message[0:160])"' "$OUT/report.json"
  n() { jq -r "[$specs | select($1)] | length" "$OUT/report.json"; }
  passed=$(n '.State == "passed"') skipped=$(n '.State == "skipped"') failed=$(n '.State != "passed" and .State != "skipped"')
  [ "$left" = 0 ] || failed=$((failed + 1))
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ]
}

# The suite is given the digest of our image, and the names of our images.
prepare_critest() {
  LC_ALL=C sed "s/$FIXED_DIGEST/$last_digest/g" "$CRITEST" >"$work/critest" && chmod +x "$work/critest"
  printf 'defaultTestContainerImage: %s/e2e-test-images/busybox:1.29-2\nwebServerTestImage: %s/e2e-test-images/nginx:1.14-2\n' \
    "$REGISTRY" "$REGISTRY" >"$work/images.yaml"
  echo '{}' >"$work/crictl.yaml"
}

run_critest() {
  local flags=() start=$SECONDS
  [ -z "${FOCUS:-}" ] || flags+=("--ginkgo.focus=$FOCUS")
  [ -z "${WEBSOCKET:-}" ] || flags+=(--websocket-exec --websocket-attach --websocket-portforward)
  (cd "$work" && CRI_CONFIG_FILE=$work/crictl.yaml timeout "${LIMIT:-1800}" "$work/critest" --runtime-endpoint="unix://$work/cri.sock" --image-endpoint="unix://$work/cri.sock" \
    --config="$work/crictl.yaml" --test-images-file="$work/images.yaml" --ginkgo.no-color --ginkgo.v --ginkgo.seed="${SEED:-1}" \
    --ginkgo.json-report="$OUT/report.json" "${flags[@]}" "$@") >"$OUT/critest.log" 2>&1 || true
  [ -s "$OUT/report.json" ] || die "critest made no report" "$OUT/critest.log"
  note "critest took $((SECONDS - start)) s"
}

check_rest() {
  step "What is left"
  cri pods rm --all >/dev/null || left=1
  cri fsck || left=1
  kill "$daemon_pid" && wait "$daemon_pid" || true
  [ "$left" = 1 ] || good "nothing"
}

inside() { # images|suite|both critest-flags...
  local part=$1; shift
  work=$WORK left=0
  mount --make-rshared /
  mount -t tmpfs run /run
  ip link set lo up
  ip link add uplink type veth peer name uplink1 && ip link set uplink1 up && ip addr add 192.0.2.1/24 dev uplink && ip link set uplink up && ip route add default dev uplink
  start_registry
  if [ "$part" != suite ]; then
    step "Images"
    push_images >"$OUT/images.log" 2>&1 || die "an image could not be built or pushed" "$OUT/images.log"
    prepare_critest
    good "pushed"
  fi
  [ "$part" != images ] || return 0
  [ "$part" = suite ] || step "critest $CRI_TOOLS"
  start_daemon
  run_critest "$@"
  check_rest
  if [ "$part" = suite ]; then [ "$left" = 0 ]; return; fi
  step "Result"
  summarise
}

if [ "${1:-}" = --inside ]; then
  shift
  keep=${OUT:-}
  export OUT=${OUT:-$WORK/out}
  mkdir -p "$OUT"
  rc=0
  (set -e; inside "$@") || rc=$?
  if [ "$rc" != 0 ] && [ -z "$keep" ]; then
    keep=$(mktemp -d /tmp/gantry-conformance-logs.XXXXXX) && cp "$OUT"/* "$keep"/
  fi
  [ -z "$keep" ] || note "logs: $keep"
  exit "$rc"
fi
outside "$@"
