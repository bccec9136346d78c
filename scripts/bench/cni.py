"""Calls CNI plugins of two folders in turn and times them; called by cni.sh inside a network namespace."""

import json
import os
import resource
import statistics
import subprocess
import time

from cni_floor import Floor

prefix, work = os.environ["PREFIX"], os.environ["WORK"]
# Of a machine with other work the quick calls tell more than the middle ones.
quantile = float(os.environ.get("QUANTILE", "0.5"))
rounds = int(os.environ.get("ROUNDS", "30"))
standing = [int(n) for n in os.environ.get("STANDING", "100 1000").split()]
# Another build of ours may stand in the reference's place, too.
folders = {"gantry": f"{work}/bin", "reference": os.environ.get("REFERENCE", "/usr/lib/cni")}
most = {"gantry": 10**9, "reference": 100 if "REFERENCE" not in os.environ else 10**9}
count = 0


def middle(times):
    return statistics.median(times) if quantile == 0.5 else sorted(times)[int(quantile * len(times))]


def config(side, plugin, **more):
    common = {"cniVersion": "1.0.0", "name": side, "type": plugin}
    if plugin == "bridge":
        number = 1 + list(folders).index(side)
        common |= {"bridge": f"br-{side[:6]}", "isGateway": True, "ipMasq": True, "hairpinMode": True,
                   "ipam": {"type": "host-local", "dataDir": f"{work}/data",
                            "ranges": [[{"subnet": f"10.{number}.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
    if plugin == "host-local":
        common["ipam"] = {"type": "host-local", "dataDir": f"{work}/ipam", "ranges": [[{"subnet": "10.9.0.0/16"}]]}
    if plugin == "tuning":
        common["sysctl"] = {"net.core.somaxconn": "500"}
    return common | more


def call(side, plugin, command, name, conf):
    """Runs a plugin; answers (milliseconds, its result)."""
    folder = folders[side]
    environment = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_CONTAINERID": name, "CNI_NETNS": f"/run/netns/{name}",
                   "CNI_IFNAME": "lo" if plugin == "loopback" else "eth0", "CNI_PATH": folder}
    text = json.dumps(conf).encode()
    start = time.perf_counter()
    done = subprocess.run([f"{folder}/{plugin}"], input=text, env=environment, capture_output=True)
    took = 1000 * (time.perf_counter() - start)
    if done.returncode != 0:
        raise SystemExit(f"{side} {plugin} {command}: {done.stdout.decode()} {done.stderr.decode()}")
    return took, json.loads(done.stdout) if done.stdout.strip() else None


def pod():
    global count
    count += 1
    name = f"{prefix}-{count}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    return name


def drop(name):
    subprocess.run(["ip", "netns", "delete", name], check=True)


def settle():
    # The kernel ends namespaces and devices in the background: whoever comes next is not to wait for that.
    time.sleep(0.2)


def above(row):
    """What the plugin itself takes: without the start of a program and what the kernel takes for the same requests."""
    row["bridge ADD, own part"] = {"gantry": round(row["bridge ADD"]["gantry"] - row["starting a program"]["gantry"]
                                                   - row["bridge ADD, kernel alone"]["gantry"], 2)}
    return row


def measure():
    times = {}
    floor = None

    def note(side, what, took):
        times.setdefault(what, {}).setdefault(side, []).append(took)

    for i in range(rounds):
        for side in sorted(folders, reverse=i % 2 == 1):
            name = pod()
            ports = [{"hostPort": 20000 + i + (1000 if side == "gantry" else 0), "containerPort": 80, "protocol": "tcp"}]
            start = time.perf_counter()
            subprocess.run(["/bin/true"], input=b"{}", capture_output=True)
            note(side, "starting a program", 1000 * (time.perf_counter() - start))
            took, _ = call(side, "loopback", "ADD", name, config(side, "loopback"))
            note(side, "loopback ADD", took)
            took, _ = call(side, "host-local", "ADD", name, config(side, "host-local"))
            note(side, "host-local ADD", took)
            took, _ = call(side, "host-local", "DEL", name, config(side, "host-local"))
            note(side, "host-local DEL", took)
            took, result = call(side, "bridge", "ADD", name, config(side, "bridge"))
            note(side, "bridge ADD", took)
            mapped = config(side, "portmap", prevResult=result, runtimeConfig={"portMappings": ports})
            note(side, "portmap ADD", call(side, "portmap", "ADD", name, mapped)[0])
            note(side, "tuning ADD", call(side, "tuning", "ADD", name, config(side, "tuning", prevResult=result))[0])
            note(side, "portmap DEL", call(side, "portmap", "DEL", name, mapped)[0])
            note(side, "bridge DEL", call(side, "bridge", "DEL", name, config(side, "bridge", prevResult=result))[0])
            drop(name)
            settle()
        # Beside a pod, whose table the element goes to.
        name, other = pod(), pod()
        call("gantry", "bridge", "ADD", name, config("gantry", "bridge"))
        floor = floor or Floor("br-gantry")
        took, made = floor.add(other)
        note("gantry", "bridge ADD, kernel alone", took)
        floor.remove(made)
        call("gantry", "bridge", "DEL", name, config("gantry", "bridge"))
        drop(name)
        drop(other)
        settle()
    return above({what: {side: round(middle(t), 2) for side, t in sides.items()} for what, sides in times.items()})


def peak(side):
    """Peak memory of bridge ADD in KiB."""
    name = pod()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    script = (f"import resource,subprocess,sys; subprocess.run(['{folders[side]}/bridge'], input=sys.stdin.buffer.read(), "
              "stdout=subprocess.DEVNULL, check=True, preexec_fn=None); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    environment = {"PATH": os.environ["PATH"], "CNI_COMMAND": "ADD", "CNI_CONTAINERID": name, "CNI_NETNS": f"/run/netns/{name}",
                   "CNI_IFNAME": "eth0", "CNI_PATH": folders[side]}
    shell = ["/usr/bin/time", "-f", "%M", f"{folders[side]}/bridge"] if os.path.exists("/usr/bin/time") else ["python3", "-c", script]
    done = subprocess.run(shell, input=json.dumps(config(side, "bridge")).encode(), env=environment, capture_output=True)
    call(side, "bridge", "DEL", name, config(side, "bridge"))
    drop(name)
    text = (done.stderr if shell[0].endswith("time") else done.stdout).decode().strip().splitlines()
    return max(int(text[-1]), 0) if text else before


result = {"standing": {"0": measure()}, "peak_kib": {side: peak(side) for side in folders}}
pods = []
for number in standing:
    for side in folders:
        while sum(s == side for s, _ in pods) < min(number, most[side]):
            name = pod()
            took, added = call(side, "bridge", "ADD", name, config(side, "bridge"))
            ports = [{"hostPort": 30000 + len(pods), "containerPort": 80, "protocol": "tcp"}]
            call(side, "portmap", "ADD", name, config(side, "portmap", prevResult=added, runtimeConfig={"portMappings": ports}))
            pods.append((side, name))
    result["standing"][str(number)] = measure()
for side, name in pods:
    call(side, "portmap", "DEL", name, config(side, "portmap"))
    call(side, "bridge", "DEL", name, config(side, "bridge"))
    drop(name)
if os.environ["FORMAT"] == "json":
    print(json.dumps(result))
else:
    for number, table in result["standing"].items():
        print(f"with {number} standing pods{'':9}{'gantry':>10}{'reference':>12}{'ratio':>8}   (ms, quantile {quantile} of {rounds})")
        for what, sides in table.items():
            reference = sides.get("reference")
            ratio = f"{sides['gantry'] / reference:.2f}" if reference else ""
            print(f"  {what:28}{sides['gantry']:>10}{reference or '':>12}{ratio:>8}")
    print(f"peak memory of bridge ADD: {result['peak_kib']['gantry']} KiB, reference {result['peak_kib']['reference']} KiB")
