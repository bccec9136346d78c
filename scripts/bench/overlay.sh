#!/usr/bin/env bash
# What gantry-overlay costs: throughput through its tunnel against a device of the same kind set up by hand, in turn in the
# same run; how long it takes from its start until 500 nodes are programmed, and until one changed node is, with how many
# changes. In network namespaces of its own; needs root, iperf3 and scripts/build.sh.
#
# usage: overlay.sh [--output json]
# env:   ROUNDS (9), SECONDS_EACH (1), PEERS (500). A round measures ours, the other, the other, ours: the machine's other work
#        changes little within one, and what grows or falls meets both. The ratio is the median of those of the rounds.
#        REALTIME (unset) anything: runs before the machine's other work.
set -uo pipefail
. "$(dirname "$0")/../lib.sh"
case ${1:-} in -h|--help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
[ -z "${REALTIME:-}" ] || chrt -f -p 10 $$ || die "this machine gives no real-time priority"
need_packages iperf3 iproute2 nftables
[ -x "$BIN_DIR/gantry-overlay" ] || die "$BIN_DIR/gantry-overlay is missing: run scripts/build.sh"
work=$(mktemp -d) ns=gantry-ovbench-$$ || exit 1
finish() {
  local pids; pids=$(jobs -p)
  [ -z "$pids" ] || { kill $pids 2>/dev/null; wait 2>/dev/null; }
  for n in 1 2 3; do ip netns delete "$ns-$n" 2>/dev/null; done
  rm -rf "$work"
}
trap finish EXIT
for n in 1 2 3; do ip netns add "$ns-$n" && ip -n "$ns-$n" link set lo up || die "cannot make a network namespace"; done
# Nodes 1 and 2 on one wire; each has an address of the pods' networks. Node 3 is for the many peers.
ip -n "$ns-1" link add eth0 type veth peer name eth0 netns "$ns-2"
ip -n "$ns-3" link add eth0 type bridge
for n in 1 2 3; do
  ip -n "$ns-$n" addr add "192.0.2.$n/24" dev eth0 && ip -n "$ns-$n" link set eth0 up
  ip -n "$ns-$n" link add pods type bridge && ip -n "$ns-$n" addr add "10.244.$n.1/24" dev pods && ip -n "$ns-$n" link set pods up
done
echo '{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}' >"$work/net-conf.json"
agent() { # node peers-file
  nsenter --net="/run/netns/$ns-$1" "$BIN_DIR/gantry-overlay" --peers "$2" --net-config-path "$work/net-conf.json" \
    --subnet-file "$work/subnet-$1.env" --iface eth0 --ip-masq --node-name "n$1" >"$work/agent-$1.log" 2>&1 &
}
echo '[{"name": "n1", "subnets": ["10.244.1.0/24"], "publicIp": "192.0.2.1"}, {"name": "n2", "subnets": ["10.244.2.0/24"], "publicIp": "192.0.2.2"}]' >"$work/two.json"
agent 1 "$work/two.json"; agent 2 "$work/two.json"
# The same by hand, in another tunnel.
for n in 1 2; do
  o=$((3 - n))
  ip -n "$ns-$n" link add hand type vxlan id 2 dev eth0 local "192.0.2.$n" dstport 8473 nolearning noudpcsum
  ip -n "$ns-$n" link set hand address "02:00:00:00:00:0$n" mtu 1450 up
  ip -n "$ns-$n" addr add "10.246.$n.0/32" dev hand && ip -n "$ns-$n" addr add "10.246.$n.1/32" dev pods
done
for n in 1 2; do
  o=$((3 - n))
  ip -n "$ns-$n" route add "10.246.$o.0/24" via "10.246.$o.0" dev hand onlink src "10.246.$n.1"
  ip -n "$ns-$n" neigh replace "10.246.$o.0" lladdr "02:00:00:00:00:0$o" dev hand nud permanent
  bridge -n "$ns-$n" fdb replace "02:00:00:00:00:0$o" dev hand dst "192.0.2.$o"
done
# One server for both: where it runs meets them alike.
nsenter --net="/run/netns/$ns-2" iperf3 --server >/dev/null 2>&1 &
python3 - "$ns" "$work" "${ROUNDS:-9}" "${SECONDS_EACH:-1}" "${PEERS:-500}" "$BIN_DIR/gantry-overlay" "$([ "${1:-}" = --output ] && echo "${2:-}" || echo table)" <<'END'
import json, os, re, statistics, subprocess, sys, time

ns, work, rounds, seconds, peers, program, form = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6], sys.argv[7]


def inside(n, *words, **more):
    return subprocess.run(["nsenter", f"--net=/run/netns/{ns}-{n}", *words], capture_output=True, text=True, **more)


def until(what, probe, patience=60):
    start = time.monotonic()
    while not probe():
        if time.monotonic() - start > patience:
            raise SystemExit(f"{what}: nothing after {patience} s")
        time.sleep(0.005)
    return time.monotonic() - start


def throughput(tunnel):
    source, target = f"10.{tunnel}.1.1", f"10.{tunnel}.2.1"
    words = ["iperf3", "--client", target, "--bind", source, "--time", str(seconds), "--json"]
    answer = json.loads(inside(1, *words, timeout=60).stdout)
    if "error" in answer:
        raise SystemExit(f"iperf3 to {target}: {answer['error']}")
    return answer["end"]["sum_received"]["bits_per_second"] / 1e9


def routes(n):
    # The kernel's own file: no program needs to be started to look.
    return sum(line.startswith("flannel.1") for line in open(f"/proc/{agents[n].pid}/net/route"))


for address in ("10.244.2.1", "10.246.2.1"):
    until(f"reach {address}", lambda: inside(1, "ping", "-c", "1", "-W", "1", "-I", address.replace(".2.1", ".1.1"), address).returncode == 0)
tunnels = {"gantry-overlay": 244, "by hand": 246}
for tunnel in tunnels.values():
    throughput(tunnel)
rates = {name: [] for name in tunnels}
for i in range(rounds):
    first, second = sorted(tunnels, reverse=i % 2 == 1)
    measured = [throughput(tunnels[name]) for name in (first, second, second, first)]
    rates[first].append((measured[0] + measured[3]) / 2)
    rates[second].append((measured[1] + measured[2]) / 2)

agents, file = {}, f"{work}/many.json"
network = lambda n: f"10.{240 + n // 250}.{n % 250}.0/24"
nodes = [{"name": f"n{n}", "subnets": [network(n) if n != 3 else "10.254.3.0/24"], "publicIp": f"192.0.{2 + n // 250}.{n % 250}"} for n in range(3, peers + 3)]
nodes[0]["publicIp"] = "192.0.2.3"
open(file, "w").write(json.dumps(nodes))
cold = []
for _ in range(rounds):
    command = ["nsenter", f"--net=/run/netns/{ns}-3", program, "--peers", file, "--net-config-path", f"{work}/net-conf.json", "--subnet-file",
               f"{work}/subnet-3.env", "--iface", "eth0", "--ip-masq", "--node-name", "n3"]
    inside(3, *command[2:], "--clean")
    log = open(f"{work}/agent-3.log", "w+")
    agents[3] = subprocess.Popen(command, stdout=log, stderr=log)
    # The namespace is entered before the program begins.
    until("namespace", lambda: os.readlink(f"/proc/{agents[3].pid}/exe").endswith("gantry-overlay"))
    cold.append(until(f"{peers} peers", lambda: routes(3) == peers - 1))
    fdb = inside(3, "bridge", "fdb", "show", "dev", "flannel.1").stdout.count(" dst ")
    if fdb != peers - 1:
        raise SystemExit(f"{fdb} places of {peers - 1}")
    time.sleep(0.5)
    if _ < rounds - 1:
        agents[3].terminate()
        agents[3].wait()
changes = lambda: [int(n) for n in re.findall(r"changes=(\d+)", re.sub(r"\x1b\[[0-9;]*m", "", open(f"{work}/agent-3.log").read()))]
took, counts = [], []
for i in range(rounds):
    before = len(changes())
    nodes[7 + i]["publicIp"] = f"198.51.100.{i + 1}"
    open(file + ".new", "w").write(json.dumps(nodes))
    start = time.monotonic()
    os.rename(file + ".new", file)
    until("the changed peer", lambda: len(changes()) > before)
    took.append(time.monotonic() - start)
    counts.append(changes()[before])
rss = int(re.search(r"VmHWM:\s*(\d+)", open(f"/proc/{agents[3].pid}/status").read())[1])
agents[3].terminate()
agents[3].wait()
median = statistics.median
ratios = [own / hand for own, hand in zip(rates["gantry-overlay"], rates["by hand"])]
result = {"gbit_per_second": {k: round(median(v), 2) for k, v in rates.items()},
          "ratio": round(median(ratios), 3), "ratio_of_sums": round(sum(rates["gantry-overlay"]) / sum(rates["by hand"]), 3), "peers": peers,
          "cold_seconds": round(median(cold), 3), "change_ms": round(1000 * median(took), 1), "changes_of_one": max(counts), "peak_kib": rss}
if form == "json":
    print(json.dumps(result))
else:
    print(f"tunnel: {result['gbit_per_second']['gantry-overlay']} Gbit/s, by hand {result['gbit_per_second']['by hand']} Gbit/s, ratio {result['ratio']}, of all together {result['ratio_of_sums']}   (medians of {rounds})")
    print(f"{peers} peers from a cold start: {result['cold_seconds']} s; one changed peer: {result['change_ms']} ms, {result['changes_of_one']} change(s)")
    print(f"peak memory with {peers} peers: {rss} KiB")
END
