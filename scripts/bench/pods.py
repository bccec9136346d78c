"""Pods made and timed through the API, and what daemons weigh: what the benchmarks of whole nodes share."""

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
PODS = "/api/v1/namespaces/default/pods"
running, ready, gone = {}, {}, set()
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


def is_true(thing, condition):
    return any(c["type"] == condition and c["status"] == "True" for c in thing.get("status", {}).get("conditions") or [])


def events(path):
    connection = connect()
    connection.request("GET", f"{path}?watch=true")
    for line in connection.getresponse():
        event = json.loads(line)
        yield event["type"], event["object"]


def _watch():
    for kind, pod in events(PODS):
        name = pod["metadata"].get("name")
        with news:
            if kind == "DELETED":
                gone.add(name)
            else:
                if pod.get("status", {}).get("phase") == "Running":
                    running.setdefault(name, time.time())
                if is_true(pod, "Ready"):
                    ready.setdefault(name, time.time())
            news.notify_all()


def watch():
    threading.Thread(target=_watch, daemon=True).start()
    time.sleep(1)


def wait(what, condition, limit=120):
    with news:
        if not news.wait_for(condition, timeout=limit):
            raise SystemExit(f"{what}: not within {limit} s")


def spec(name, **container):
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "gantry.local/demo:latest", "imagePullPolicy": "Never",
             "args": ["count", "100000", "60000"], **container}]},
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


def delete(names, limit=240):
    connection = connect()
    for name in names:
        call(connection, "DELETE", f"{PODS}/{name}")
    wait("deletion", lambda: all(n in gone for n in names), limit)


def processes(program):
    """Process ids of one of our programs."""
    for process in glob.glob("/proc/[0-9]*"):
        try:
            exe = os.readlink(f"{process}/exe")
            # A node of the benchmark's own: others' have their folders elsewhere.
            if os.path.basename(exe) == program and exe.startswith(programs) and os.readlink(f"{process}/ns/net") == os.readlink("/proc/self/ns/net"):
                yield process
        except OSError:
            continue


def weight(program, kind="Pss"):
    """Sum of the memory (PSS, or another line of smaps_rollup) and number of the processes of one program, in KiB."""
    total = count = 0
    for process in processes(program):
        try:
            total += next(int(l.split()[1]) for l in open(f"{process}/smaps_rollup") if l.startswith(f"{kind}:"))
        except (OSError, StopIteration):
            continue
        count += 1
    return total, count


def cpu_seconds(program):
    """Processor time of a program so far."""
    total = 0
    for process in processes(program):
        fields = open(f"{process}/stat").read().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))]


def spread(seconds):
    """Median and 99th percentile in milliseconds."""
    ms = [1000 * s for s in seconds]
    return round(statistics.median(ms), 1), round(percentile(ms, 99), 1)
