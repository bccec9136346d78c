"""Times pods from their creation on; called by pod-start.sh, which has a node running."""

import json
import os
import time

from pods import PODS, call, connect, delete, first_line, running, spec, spread, wait, watch, weight


def start(names):
    """Creates the pods at once; answers (seconds to Running, seconds to the first line) of each."""
    connection, created, pods = connect(), {}, {}
    for name in names:
        created[name] = time.time()
        pods[name] = call(connection, "POST", PODS, spec(name))
    wait("Running", lambda: all(n in running for n in names))
    return [(running[n] - created[n], first_line(pods[n]) - created[n]) for n in names]


def summary(times):
    (p50, p99), (line50, line99) = (spread(column) for column in zip(*times))
    return {"running_p50_ms": p50, "running_p99_ms": p99, "first_line_p50_ms": line50, "first_line_p99_ms": line99}


watch()
daemons = ["gantry-apiserver", "gantry-cri", "kubelet"]
result = {"idle_kib": {d: weight(d)[0] for d in daemons}}
sequential = []
for i in range(int(os.environ.get("SEQUENTIAL", "20"))):
    sequential += start([f"one-{i}"])
    delete([f"one-{i}"])
result["one"] = summary(sequential)
batch = [f"batch-{i}" for i in range(int(os.environ.get("BATCH", "20")))]
result["batch"] = {"pods": len(batch), **summary(start(batch))}
result["loaded_kib"] = {d: weight(d)[0] for d in daemons}
pss, count = weight("gantry-monitor")
result["monitor_kib"] = round(pss / max(count, 1))
delete(batch)
if os.environ["FORMAT"] == "json":
    print(json.dumps(result))
else:
    print(f"{'':24}{'Running p50':>14}{'p99':>9}{'first line p50':>17}{'p99':>9}   (ms)")
    for name, row in (("one pod", result["one"]), (f"{len(batch)} pods at once", result["batch"])):
        print(f"{name:24}{row['running_p50_ms']:>14}{row['running_p99_ms']:>9}{row['first_line_p50_ms']:>17}{row['first_line_p99_ms']:>9}")
    print(f"\n{'PSS':24}{'idle':>10}{'loaded':>10}   (KiB)")
    for d in daemons:
        print(f"{d:24}{result['idle_kib'][d]:>10}{result['loaded_kib'][d]:>10}")
    print(f"{'gantry-monitor, each':24}{'':>10}{result['monitor_kib']:>10}")
