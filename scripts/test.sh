#!/usr/bin/env bash
# Runs every test: formatting, lints, unit and component tests of all crates, then node tests on release programs.
# Installs what they need. Ends with one line: N passed, N failed, N skipped.
#
# usage: test.sh [--fast|--unit|--vm]   --fast: no lints; --unit: no release programs, no node tests; --vm: tests in virtual machines too
# env:   CRICTL, CNITOOL, FLANNELD  programs to use (default: built where Go is found)
#        DOCKER  a folder with docker.io's programs (default: unpacked from Debian's packages)
set -uo pipefail
. "$(dirname "$0")/lib.sh"
fast= node=1 vm=
case ${1:-} in -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;; --fast) fast=1 ;; --unit) node= ;; --vm) vm=1 ;; '') ;; *) die "unknown argument $1 (see --help)" ;; esac
cd "$ROOT" || exit
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

# Adds up what a run of cargo test printed. A test that found nothing to run on says `skipped: reason` and counts as such.
count() { # log exit-code
  local p f i s
  p=$(grep -oE '^test result: .*' "$1" | grep -oE '[0-9]+ passed' | awk '{n+=$1} END {print n+0}')
  f=$(grep -oE '^test result: .*' "$1" | grep -oE '[0-9]+ failed' | awk '{n+=$1} END {print n+0}')
  i=$(grep -oE '^test result: .*' "$1" | grep -oE '[0-9]+ ignored' | awk '{n+=$1} END {print n+0}')
  s=$(grep -c '^skipped: ' "$1")
  # A run that failed without a failed test (it did not compile, or died) is a failure too.
  [ "$2" = 0 ] || [ "$f" -gt 0 ] || f=1
  passed=$((passed + p - s)) failed=$((failed + f)) skipped=$((skipped + i + s))
}

# A check that is one test: check WHAT CMD...
check() {
  local what=$1 log=$work/check.log; shift
  if "$@" >"$log" 2>&1; then passed=$((passed + 1)); good "$what"; else
    failed=$((failed + 1)); printf '    %sFAILED%s %s\n' "$red" "$plain" "$what"; tail -n 40 "$log" | sed 's/^/    | /'
  fi
}

run_tests() { # log cmd...
  local log=$1 rc; shift
  "$@" >"$log" 2>&1; rc=$?
  count "$log" "$rc"
  if [ "$rc" != 0 ]; then
    # What failed and why first: the end of a long log says little about a test in its middle.
    grep -E -A 3 '^test .* \.\.\. FAILED|panicked at|^error' "$log" | grep -v '^--$' | head -n 120 | sed 's/^/    | /'
    tail -n 30 "$log" | sed 's/^/    | /'
  fi
  grep -E '^skipped: |^test .* \.\.\. ignored' "$log" | sort | uniq -c | sed 's/^/    /'
}

# Programs that are Go modules: a module of ours that requires one is what makes `go build` take its pinned version.
build_go() { # program module version package
  mkdir -p "$work/go-${1##*/}" && cd "$work/go-${1##*/}" && printf 'module tools\ngo 1.24\nrequire %s %s\n' "$2" "$3" >go.mod &&
    GOFLAGS=-mod=mod go build -o "$1" "$4"
}

# A tool that tests use: as the variable says, else built where there is Go. tool VARIABLE PROGRAM MODULE VERSION PACKAGE
tool() {
  export "$1=${!1:-$ROOT/target/tools/$2}"
  [ ! -x "${!1}" ] && command -v go >/dev/null || return 0
  note "building $2"
  (build_go "${!1}" "$3" "$4" "$5") >"$work/go.log" 2>&1 || note "$2 could not be built, its tests are left out: $(tail -n 1 "$work/go.log")"
}

# promtool alone: the package would start a server.
unpack_promtool() {
  cd "$work" && apt-get download prometheus && dpkg -x prometheus_*.deb prometheus && install -D prometheus/usr/bin/promtool "$PROMTOOL"
}

# dockerd and what it runs: the package would start it.
unpack_docker() {
  cd "$work" && apt-get download docker.io && dpkg -x docker.io_*.deb docker && mkdir -p "$DOCKER" &&
    install docker/usr/bin/docker docker/usr/sbin/dockerd docker/usr/sbin/docker-proxy "$DOCKER" &&
    apt-get download tini && dpkg -x tini_*.deb docker && install docker/usr/bin/tini-static "$DOCKER/docker-init"
}

step "Requirements"
need_cargo
if [ "$(id -u)" = 0 ]; then
  need_packages ca-certificates curl gcc libc6-dev iproute2 iperf3 iptables nftables iputils-ping busybox-static docker-registry runc openssl python3 tar util-linux bsdutils
  command -v kubectl >/dev/null || need_packages kubernetes-client
else
  note "not root: tests that need root are skipped and counted"
fi
CRICTL=${CRICTL:-$(command -v crictl)}
tool CRICTL crictl sigs.k8s.io/cri-tools v1.36.0 sigs.k8s.io/cri-tools/cmd/crictl
tool CNITOOL cnitool github.com/containernetworking/cni v1.3.0 github.com/containernetworking/cni/cnitool
tool FLANNELD flanneld github.com/flannel-io/flannel v0.26.7 github.com/flannel-io/flannel
if ! command -v promtool >/dev/null; then
  export PROMTOOL=$ROOT/target/tools/promtool
  [ -x "$PROMTOOL" ] || [ "$(id -u)" != 0 ] || (unpack_promtool) >"$work/promtool.log" 2>&1 || note "promtool could not be had: $(tail -n 1 "$work/promtool.log")"
fi
export DOCKER=${DOCKER:-$ROOT/target/tools/docker}
[ -x "$DOCKER/dockerd" ] || [ "$(id -u)" != 0 ] || (unpack_docker) >"$work/docker.log" 2>&1 || note "docker could not be had: $(tail -n 1 "$work/docker.log")"
# Tests of checkpoints need a criu that works on this kernel.
if [ "$(id -u)" = 0 ] && ! criu check >"$work/criu.log" 2>&1; then
  PATH=$ROOT/target/tools/criu:$PATH
  [ -x "$ROOT/target/tools/criu/criu" ] || ./scripts/criu.sh "$ROOT/target/tools/criu" >"$work/criu.log" 2>&1 || note "criu could not be had: $(tail -n 1 "$work/criu.log")"
fi
good "ready"

if [ -z "$fast" ]; then
  step "Formatting and lints"
  check "cargo fmt" cargo fmt --all --check
  check "cargo clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
fi

step "Unit and component tests"
run_tests "$work/unit.log" timeout 1500 cargo test --locked --workspace --exclude gantry-tests --no-fail-fast -- --show-output
run_tests "$work/workspace.log" cargo test --locked -p gantry-tests --lib --test workspace --no-fail-fast
note "$passed passed, $failed failed, $skipped skipped so far"

if [ -z "$fast" ]; then
  step "Fuzz targets"
  if [ "$(id -u)" = 0 ] || command -v g++ >/dev/null; then
    # Always the same inputs: what counts here is that those that once found a fault pass and that the targets run; looking for
    # new ones takes hours, not seconds.
    check "fuzz targets, 3 s each" timeout 420 ./scripts/fuzz.sh --seconds 3 --seed 1
    grep -E ' runs .* edges | FAULT ' "$work/check.log" | sed 's/^ */      /'
  else
    skipped=$((skipped + 1)); note "skipped: fuzz targets: there is no g++"
  fi
fi

if [ -n "$node" ]; then
  step "Release programs"
  check "scripts/build.sh" ./scripts/build.sh
  step "Node tests"
  run_tests "$work/node.log" cargo test --locked -p gantry-tests --test node
  grep -E '^test .* \.\.\. ' "$work/node.log" | sed 's/^/    /'
  if [ "$(id -u)" = 0 ]; then
    step "The two commands"
    check "scripts/up.sh and scripts/down.sh, twice, leave nothing" ./tests/up-down.sh
    step "Certificates"
    check "a node joins with a token and renews its certificates while it runs" ./tests/certificates.sh
    step "critest"
    if command -v go >/dev/null; then
      OUT=$work/critest timeout 1200 ./scripts/conformance.sh >"$work/critest.log" 2>&1
      line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$work/critest.log" | tail -n 1)
      # No closing line: it did not get as far as running, which is one failure.
      read -r p _ f _ s _ <<<"${line:-0 passed, 1 failed, 0 skipped}"
      passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
      note "$p passed, $f failed, $s skipped (AppArmor, which this host lacks, and benchmarks)"
      [ "$f" = 0 ] || tail -n 60 "$work/critest.log" | sed 's/^/    | /'
    else
      skipped=$((skipped + 1)); note "skipped: critest: there is no Go"
    fi
    step "With others' programs"
    need_packages containerd
    check "podman and containerd with gantry-run" ./tests/interop-runtime.sh
    if [ -x "$DOCKER/dockerd" ]; then
      check "docker with gantry-run" ./tests/interop-docker.sh
    else
      skipped=$((skipped + 1)); note "skipped: docker with gantry-run: there is no dockerd"
    fi
    command -v podman >/dev/null || { skipped=$((skipped + 1)); note "skipped: podman with gantry-run: there is no podman"; }
    if [ -x "$CRICTL" ]; then
      need_packages containerd
      note "our kubelet on Debian's containerd"
      run_tests "$work/containerd.log" env GANTRY_NODE_RUNTIME=containerd timeout 300 cargo test --locked -p gantry-tests --test node -- pod:: debug:: csi::a_claims csi::inline
      check "our CNI plugins under containerd" ./tests/interop-containerd.sh
      need_packages containernetworking-plugins iptables
      if [ -x "$CNITOOL" ]; then
        check "cnitool with our CNI plugins and others', and others' under gantry-cri" ./tests/interop-cni.sh
      else
        skipped=$((skipped + 1)); note "skipped: CNI plugins under cnitool: there is no Go"
      fi
      if [ -x "$FLANNELD" ]; then
        check "a cluster of gantry-overlay and flanneld" ./tests/interop-flannel.sh
      else
        skipped=$((skipped + 1)); note "skipped: gantry-overlay beside flanneld: there is no Go"
      fi
    else
      skipped=$((skipped + 3)); note "skipped: CNI plugins of ours and others' under other runtimes, and flanneld: there is no crictl"
    fi
  fi
fi

if [ -n "$vm" ]; then
  step "Machine tests"
  timeout 2400 ./tests/vm/run.sh --small 2>&1 | tee "$work/vm.log" | sed 's/^/    /'
  line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$work/vm.log" | tail -n 1)
  # No closing line: the machines did not come up, which is one failure.
  read -r p _ f _ <<<"${line:-0 passed, 1 failed}"
  passed=$((passed + p)) failed=$((failed + f))
fi

[ -n "$node" ] || note "node tests were left out (--unit)"
step "Result"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
