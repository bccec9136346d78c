"""Measures what a kubelet is judged by; called by kubelet.sh, which has a node running."""

import json
import os
import subprocess
import threading
import time

from pods import PODS, call, connect, cpu_seconds, delete, events, is_true, ready, running, spec, spread, wait, watch, weight


def number(name, default):
    return int(os.environ.get(name, default))


def create(connection, name, **container):
    begun = time.time()
    call(connection, "POST", PODS, spec(name, **container))
    return begun


def all_up(table, begun, limit):
    wait("pods", lambda: all(n in table for n in begun), limit)
    return [table[n] - at for n, at in begun.items()]


def names(prefix, count):
    return [f"{prefix}-{i}" for i in range(count)]


def sequential():
    """Create to Running of one pod after another, with others that run."""
    connection, background, took = connect(), names("back", number("BACKGROUND", 50)), []
    all_up(running, {n: create(connection, n) for n in background}, 300)
    for name in names("one", number("SEQUENTIAL", 50)):
        took += all_up(running, {name: create(connection, name)}, 60)
        delete([name])
    delete(background)
    return spread(took)


def rated():
    """Create to Running of pods that come at a steady rate."""
    connection, begun, start, rate = connect(), {}, time.time(), number("RATE", 5)
    for i, name in enumerate(names("rate", number("RATED", 100))):
        time.sleep(max(0, start + i / rate - time.time()))
        begun[name] = create(connection, name)
    took = all_up(running, begun, 300)
    delete(list(begun))
    return spread(took)


# Each kind of probe that a node has to make.
PROBES = [
    {"httpGet": {"path": "/healthz", "port": 8080}},
    {"tcpSocket": {"port": 8080}},
    {"exec": {"command": ["/bin/gantry-demo", "echo", "fine"]}},
]


def full(pods):
    """Seconds from the first creation until all pods are Ready, on a kubelet that has none."""
    connection, begun = connect(), {}
    for i, name in enumerate(pods):
        begun[name] = create(connection, name, args=["serve", "8080", "/"], readinessProbe={**PROBES[i % len(PROBES)], "periodSeconds": 10})
    all_up(ready, begun, 600)
    return round(max(ready[n] for n in pods) - min(begun.values()), 2)


def idle(seconds):
    """Shares of one core while nothing happens but probes."""
    programs = ["kubelet", "gantry-cri", "gantry-apiserver", "gantry-monitor"]
    before, start = {p: cpu_seconds(p) for p in programs}, time.time()
    time.sleep(seconds)
    return {p: round(100 * (cpu_seconds(p) - before[p]) / (time.time() - start), 2) for p in programs}


def node_script(functions):
    root = os.environ["ROOT"]
    subprocess.run(["bash", "-c", f". {root}/scripts/lib.sh; . {root}/scripts/node.sh; {functions}"], check=True, stdout=subprocess.DEVNULL)


def start_up():
    """Seconds from the kubelet's start until the apiserver has a Ready node, the node being unknown before."""
    path, name = "/api/v1/nodes", os.environ["NODE_NAME"]
    node_script("stop_daemon kubelet")
    call(connect(), "DELETE", f"{path}/{name}")
    seen, there = threading.Event(), []

    def look():
        for kind, node in events(path):
            if kind != "DELETED" and node["metadata"].get("name") == name and is_true(node, "Ready"):
                there.append(time.time())
                seen.set()
                return

    threading.Thread(target=look, daemon=True).start()
    time.sleep(0.5)
    begun = time.time()
    node_script("start_kubelet")
    if not seen.wait(60):
        raise SystemExit("the node was not Ready within 60 s of the kubelet's start")
    return there[0] - begun


watch()
rows = []


def row(name, value, unit, target):
    rows.append({"name": name, "value": value, "unit": unit, "target": target})


row("kubelet PSS, no pods", round(weight("kubelet")[0] / 1024, 1), "MB", None)
count = number("PODS", 110)
everything = names("full", count)
row(f"{count} pods from cold, all Ready", full(everything), "s", 15)
time.sleep(20)
shares = idle(number("IDLE", 60))
row(f"kubelet RSS, {count} pods, probes every 10 s", round(weight("kubelet", "Rss")[0] / 1024, 1), "MB", 25)
row("kubelet, share of one core", shares["kubelet"], "%", 2)
row("gantry-cri, share of one core", shares["gantry-cri"], "%", None)
row("gantry-apiserver, share of one core", shares["gantry-apiserver"], "%", None)
row("all monitors, share of one core", shares["gantry-monitor"], "%", None)
weights = {p: weight(p) for p in ["kubelet", "gantry-cri", "gantry-monitor"]}
row("kubelet PSS", round(weights["kubelet"][0] / 1024, 1), "MB", None)
row("gantry-cri PSS", round(weights["gantry-cri"][0] / 1024, 1), "MB", None)
row(f"{weights['gantry-monitor'][1]} monitors PSS", round(weights["gantry-monitor"][0] / 1024, 1), "MB", None)
row("kubelet + gantry-cri + monitors PSS", round(sum(w for w, _ in weights.values()) / 1024, 1), "MB", 150)
delete(everything, 600)
p50, p99 = sequential()
row(f"one pod, {number('BACKGROUND', 50)} in the background, Running p50", p50, "ms", 300)
row("    p99", p99, "ms", 1000)
p50, p99 = rated()
row(f"{number('RATED', 100)} pods at {number('RATE', 5)} a second, Running p50", p50, "ms", None)
row("    p99", p99, "ms", 1000)
starts = [start_up() for _ in range(number("STARTS", 5))]
p50, p99 = spread(starts)
row("kubelet's start to Ready, p50", p50, "ms", 1000)
row("    p99", p99, "ms", None)
if os.environ["FORMAT"] == "json":
    print(json.dumps({"load": os.getloadavg()[0], "rows": rows}))
else:
    print(f"{'':56}{'measured':>10}{'target':>10}   (load {os.getloadavg()[0]:.1f})")
    for r in rows:
        target = "" if r["target"] is None else r["target"]
        mark = "" if r["target"] is None else ("  ok" if r["value"] <= r["target"] else "  MISSED")
        print(f"{r['name']:56}{r['value']:>10}{target:>10} {r['unit']}{mark}")
