"""Creates pods through the API and times them; called by pod-start.sh, which has a node running."""

import datetime
import glob
import http.client
import json
import os
import ssl
import statistics
import threading
import time
import urllib.parse

state, programs = os.environ["STATE"], os.environ["BIN_DIR"]
url = urllib.parse.urlparse(os.environ["API_URL"])
tls = ssl.create_default_context(cafile=f"{state}/apiserver/pki/ca.crt")
tls.load_cert_chain(f"{state}/bench.crt", f"{state}/bench.key")
running, gone = {}, set()
news = threading.Condition()


def connect():
    return http.client.HTTPSConnection(url.hostname, url.port, context=tls)


def call(connection, method, path, body=None):
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {text.decode()}")
    return json.loads(text)


def watch():
    connection = connect()
    connection.request("GET", "/api/v1/namespaces/default/pods?watch=true")
    for line in connection.getresponse():
        event = json.loads(line)
        name, pod = event["object"]["metadata"].get("name"), event["object"]
        with news:
            if event["type"] == "DELETED":
                gone.add(name)
            elif pod.get("status", {}).get("phase") == "Running":
                running.setdefault(name, time.time())
            news.notify_all()


def wait(what, condition):
    with news:
        if not news.wait_for(condition, timeout=120):
            raise SystemExit(f"{what}: not within 120 s")


def spec(name):
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "gantry.local/demo:latest", "imagePullPolicy": "Never", "args": ["count", "100000", "60000"]}]},
    }


def first_line(pod):
    """When the container printed its first line, from its log."""
    folder = f"{state}/pod-logs/default_{pod['metadata']['name']}_{pod['metadata']['uid']}/c"
    for _ in range(400):
        for log in glob.glob(f"{folder}/*.log"):
            stamp = open(log).read(64).split(" ")[0]
            if stamp.endswith("Z"):
                whole, _, fraction = stamp[:-1].partition(".")
                moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
                return moment.timestamp() + float("0." + (fraction or "0"))
        time.sleep(0.01)
    raise SystemExit(f"no log line in {folder}")


def start(names):
    """Creates the pods at once; answers (seconds to Running, seconds to the first line) of each."""
    connection, created, pods = connect(), {}, {}
    for name in names:
        created[name] = time.time()
        pods[name] = call(connection, "POST", "/api/v1/namespaces/default/pods", spec(name))
    wait("Running", lambda: all(n in running for n in names))
    return [(running[n] - created[n], first_line(pods[n]) - created[n]) for n in names]


def delete(names):
    connection = connect()
    for name in names:
        call(connection, "DELETE", f"/api/v1/namespaces/default/pods/{name}")
    wait("deletion", lambda: all(n in gone for n in names))


def weight(program):
    """Sum of PSS and number of the processes of one of our programs, in KiB."""
    total = count = 0
    for process in glob.glob("/proc/[0-9]*"):
        try:
            if os.path.basename(os.readlink(f"{process}/exe")) != program or not os.readlink(f"{process}/exe").startswith(programs):
                continue
            pss = next(int(l.split()[1]) for l in open(f"{process}/smaps_rollup") if l.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
        total, count = total + pss, count + 1
    return total, count


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))]


def summary(times):
    ms = [[1000 * t for t in column] for column in zip(*times)]
    return {"running_p50_ms": round(statistics.median(ms[0]), 1), "running_p99_ms": round(percentile(ms[0], 99), 1),
            "first_line_p50_ms": round(statistics.median(ms[1]), 1), "first_line_p99_ms": round(percentile(ms[1], 99), 1)}


threading.Thread(target=watch, daemon=True).start()
time.sleep(1)
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
