#!/usr/bin/env python3
"""Measures OCI runtimes side by side: every round runs each runtime once, so that all see the same machine."""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

CAPS = ["CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"]
MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
STEPS = ["create", "state", "start", "kill", "delete"]


def system_calls():
    """About 400 names that an engine's default profile allows: all of the machine's table but the privileged ones."""
    refused = {"acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module", "finit_module",
               "get_kernel_syms", "init_module", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
               "mount", "mount_setattr", "move_mount", "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root",
               "quotactl", "reboot", "request_key", "setns", "settimeofday", "swapoff", "swapon", "umount", "umount2",
               "unshare", "vhangup", "clone", "personality", "socket"}
    header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    if not os.path.exists(header):
        sys.exit(f"{header} is missing: install linux-libc-dev")
    names = [line.split()[1][5:] for line in open(header) if line.startswith("#define __NR_")]
    more = ["chown32", "fchown32", "fcntl64", "fstat64", "fstatat64", "ftruncate64", "getegid32", "geteuid32", "getgid32",
            "getuid32", "lstat64", "mmap2", "_llseek", "setgid32", "setuid32", "stat64", "truncate64", "ugetrlimit",
            "waitpid", "recv", "send", "clock_gettime64", "futex_time64", "ppoll_time64", "sigreturn"]
    return [n for n in names if n not in refused] + more


def seccomp():
    """A profile of 14 rules like those of engines."""
    def rule(names, action, **more):
        return {"names": names, "action": action, **more}

    def value(index, v, op, two=0):
        return [{"index": index, "value": v, "valueTwo": two, "op": op}]
    allow = "SCMP_ACT_ALLOW"
    rules = [rule(system_calls(), allow)]
    rules += [rule(["personality"], allow, args=value(0, v, "SCMP_CMP_EQ")) for v in (0, 8, 0x20000, 0x20008, 0xffffffff)]
    rules += [rule(["socket"], allow, args=value(0, 40, op)) for op in ("SCMP_CMP_LT", "SCMP_CMP_GT")]
    rules += [rule(["clone"], allow, args=value(0, 0x7e020000, "SCMP_CMP_MASKED_EQ")),
              rule(["ptrace"], allow), rule(["arch_prctl"], allow), rule(["modify_ldt"], allow), rule(["chroot"], allow),
              rule(["bpf", "perf_event_open", "setns"], "SCMP_ACT_ERRNO", errnoRet=1),
              rule(["syslog"], allow)]
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules}


def config(kind, args, cgroup):
    """The configuration: `plain` has all namespaces and no limits, `full` what an engine asks for."""
    full = kind == "full"
    caps = CAPS if full else ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    spec = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin", "HOME=/root"], "cwd": "/",
                    "capabilities": {s: caps for s in ("bounding", "effective", "permitted")},
                    "noNewPrivileges": True},
        "root": {"path": "rootfs", "readonly": not full},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}],
        "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
                  "cgroupsPath": cgroup, "maskedPaths": MASKED, "readonlyPaths": READONLY}}
    if full:
        spec["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                               "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]})
        spec["linux"]["resources"] = {"memory": {"limit": 256 << 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000},
                                      "pids": {"limit": 100}, "devices": [{"allow": False, "access": "rwm"}]}
        spec["linux"]["seccomp"] = seccomp()
    return spec


class Bench:
    """The folders of one measurement, removed at its end."""

    def __init__(self, runtimes):
        self.runtimes = runtimes
        self.top = tempfile.mkdtemp(prefix="gantry-bench-oci-")
        self.serial = 0

    def close(self):
        shutil.rmtree(self.top, ignore_errors=True)

    def bundle(self, kind, args, name):
        folder = os.path.join(self.top, name)
        if not os.path.isdir(folder):
            rootfs = os.path.join(folder, "rootfs")
            for d in ("bin", "proc", "dev", "sys", "root", "etc", "tmp"):
                os.makedirs(os.path.join(rootfs, d))
            shutil.copy("/bin/busybox", os.path.join(rootfs, "bin/busybox"))
            for word in ("true", "sleep", "sh"):
                os.symlink("busybox", os.path.join(rootfs, "bin", word))
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(config(kind, args, f"/gantry-bench/{name}"), f)
        return folder

    def call(self, name, *words, check=True):
        """Runs one command of a runtime; returns milliseconds."""
        path = self.runtimes[name]
        argv = [path, "--root", os.path.join(self.top, "state-" + name), *words]
        begin = time.perf_counter()
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors(), timeout=60)
        took = (time.perf_counter() - begin) * 1000
        if check and done.returncode:
            sys.exit(f"{name} {' '.join(words)}: exit {done.returncode}: {open(self.top + '/errors').read()[-400:]}")
        return took

    def errors(self):
        return open(os.path.join(self.top, "errors"), "w")

    def id(self, name):
        self.serial += 1
        return f"bench-{name}-{os.getpid()}-{self.serial}"

    def run(self, name, kind):
        bundle = self.bundle(kind, ["/bin/true"], f"{name}-{kind}-run")
        return self.call(name, "run", "--bundle", bundle, self.id(name))

    def life(self, name, kind):
        """One container from create to delete: milliseconds of each step."""
        bundle = self.bundle(kind, ["/bin/sleep", "1000"], f"{name}-{kind}-life")
        who = self.id(name)
        took = {"create": self.call(name, "create", "--bundle", bundle, who)}
        took["state"] = self.call(name, "state", who)
        took["start"] = self.call(name, "start", who)
        took["kill"] = self.call(name, "kill", who, "KILL")
        deadline = time.monotonic() + 20
        while self.status(name, who) != "stopped":
            if time.monotonic() > deadline:
                sys.exit(f"{name}: {who} does not stop")
            time.sleep(0.002)
        took["delete"] = self.call(name, "delete", who)
        return took

    def status(self, name, who):
        argv = [self.runtimes[name], "--root", os.path.join(self.top, "state-" + name), "state", who]
        return json.loads(subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout)["status"]

    def peak(self, name, kind):
        """Peak resident kilobytes of `create`. A small program measures: what forks from a large one inherits its peak."""
        bundle = self.bundle(kind, ["/bin/sleep", "1000"], f"{name}-{kind}-life")
        who = self.id(name)
        kilobytes = self.timed([self.runtimes[name], "--root", os.path.join(self.top, "state-" + name), "create", "--bundle",
                                bundle, who])
        self.call(name, "delete", "--force", who)
        return kilobytes

    def timed(self, argv):
        out = os.path.join(self.top, "time")
        subprocess.run(["/bin/busybox", "time", "-o", out, "-f", "%M", *argv], stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        # Busybox takes the kernel's kilobytes for pages of four.
        return int(open(out).read().split()[-1]) // 4

    def calls(self, name, kind):
        """System calls of one run, children included."""
        if not shutil.which("strace"):
            return None
        bundle = self.bundle(kind, ["/bin/true"], f"{name}-{kind}-run")
        out = os.path.join(self.top, "strace")
        argv = ["strace", "-f", "-c", "-o", out, self.runtimes[name], "--root", os.path.join(self.top, "state-" + name), "run",
                "--bundle", bundle, self.id(name)]
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        total = [line.split() for line in open(out) if line.rstrip().endswith("total")]
        return int(total[-1][3 if len(total[-1]) > 4 else 2]) if total else None

    def throughput(self, name, kind, count, width):
        """Containers a second, `width` at a time, from create to delete by `run`."""
        bundle = self.bundle(kind, ["/bin/true"], f"{name}-{kind}-run")
        begin, running, left = time.perf_counter(), [], count
        spec = json.load(open(os.path.join(bundle, "config.json")))
        folders = []
        for slot in range(width):
            folder = os.path.join(self.top, f"{name}-wide-{slot}")
            os.makedirs(folder, exist_ok=True)
            spec["root"]["path"] = os.path.join(bundle, "rootfs")
            spec["linux"]["cgroupsPath"] = f"/gantry-bench/{name}-wide-{slot}"
            with open(os.path.join(folder, "config.json"), "w") as f:
                json.dump(spec, f)
            folders.append(folder)
        begin = time.perf_counter()
        while left or running:
            while left and folders:
                folder = folders.pop()
                argv = [self.runtimes[name], "--root", os.path.join(self.top, "state-" + name), "run", "--bundle", folder,
                        self.id(name)]
                p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                running.append((p, folder))
                left -= 1
            pid, status = os.wait()
            for entry in running:
                if entry[0].pid == pid:
                    entry[0].returncode = os.waitstatus_to_exitcode(status)
                    if status:
                        sys.exit(f"{name}: a container of the throughput test failed")
                    folders.append(entry[1])
                    running.remove(entry)
                    break
        return count / (time.perf_counter() - begin)


def median(values):
    return round(statistics.median(values), 2)


def mount_many(top, count):
    """Fills this program's own mount table: a file system that holds the others, so that one unmount removes them all."""
    many = os.path.join(top, "many")
    os.makedirs(many)
    subprocess.run(["mount", "-t", "tmpfs", "none", many], check=True)
    script = f"i=0; while [ $i -lt {count} ]; do mkdir {many}/$i && mount -t tmpfs none {many}/$i || exit 1; i=$((i+1)); done"
    subprocess.run(["/bin/busybox", "sh", "-c", script], check=True, timeout=120)


def own_mount_namespace():
    """Goes on in a mount namespace of its own: what is mounted here ends with this program."""
    if os.environ.get("GANTRY_BENCH_INSIDE") != "1":
        os.environ["GANTRY_BENCH_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])


def hide_unified_controllers(top):
    """crun before 1.9 refuses hybrid hosts whose version 2 tree has any controller: show it (and all others) none here."""
    controllers = "/sys/fs/cgroup/unified/cgroup.controllers"
    if os.path.exists(controllers) and open(controllers).read().strip():
        empty = os.path.join(top, "no-controllers")
        open(empty, "w").close()
        subprocess.run(["mount", "--bind", empty, controllers], check=True)


def measure(options, runtimes):
    bench = Bench(runtimes)
    hide_unified_controllers(bench.top)
    figures = {}
    try:
        for kind in options.kinds:
            times = {n: {"run": [], **{s: [] for s in STEPS}} for n in runtimes}
            for _ in range(options.rounds + 2):
                for name in runtimes:
                    times[name]["run"].append(bench.run(name, kind))
            for _ in range(max(options.rounds // 3, 3) + 1):
                for name in runtimes:
                    for step, took in bench.life(name, kind).items():
                        times[name][step].append(took)
            for name in runtimes:
                warm = {"run": 2}
                here = {s: {"median": median(v[warm.get(s, 1):]), "min": round(min(v), 2)} for s, v in times[name].items()}
                here["peak_rss_kb"] = min(filter(None, (bench.peak(name, kind) for _ in range(3))), default=None)
                here["system_calls"] = bench.calls(name, kind)
                figures.setdefault(name, {})[kind] = here
        for name, path in runtimes.items():
            figures[name]["binary_kb"] = os.path.getsize(path) // 1024
            if options.wide:
                figures[name]["per_second"] = round(bench.throughput(name, options.kinds[-1], options.wide, 8), 1)
        if options.mounts:
            mount_many(bench.top, options.mounts)
            times = {n: [] for n in runtimes}
            for _ in range(max(options.rounds // 4, 3)):
                for name in runtimes:
                    times[name].append(bench.run(name, "plain"))
            for name in runtimes:
                figures[name]["run_with_many_mounts"] = median(times[name])
    finally:
        subprocess.run(["umount", "-l", os.path.join(bench.top, "many")], check=False, stderr=subprocess.DEVNULL)
        bench.close()
        # The groups' parent, in every hierarchy.
        subprocess.run(["find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*/gantry-bench*", "-exec", "rmdir", "{}", ";"],
                       check=False, stderr=subprocess.DEVNULL)
    return figures


def table(figures, base):
    rows = []
    kinds = [k for k in ("plain", "full") if k in figures[base]]
    for kind in kinds:
        for step in ["run", *STEPS]:
            rows.append((f"{step} {kind} (ms)", lambda f, k=kind, s=step: f[k][s]["median"]))
        rows.append((f"create {kind}, peak RSS (kB)", lambda f, k=kind: f[k]["peak_rss_kb"]))
        rows.append((f"run {kind}, system calls", lambda f, k=kind: f[k]["system_calls"]))
    rows += [("binary (kB)", lambda f: f["binary_kb"]), ("8 at a time, containers/s", lambda f: f.get("per_second")),
             ("run with many mounts (ms)", lambda f: f.get("run_with_many_mounts"))]
    names = list(figures)
    print(f"{'':32}" + "".join(f"{n:>12}" for n in names) + f"   {names[0]}/{base}")
    for label, get in rows:
        values = [get(figures[n]) for n in names]
        if all(v is None for v in values):
            continue
        ratio = values[0] / get(figures[base]) if values[0] and get(figures[base]) else None
        print(f"{label:32}" + "".join(f"{'-' if v is None else v:>12}" for v in values) +
              (f"   {ratio:.2f}" if ratio else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gantry", required=True, help="the gantry-run to measure")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", default=["plain", "full"], choices=["plain", "full"])
    parser.add_argument("--wide", type=int, default=200, help="containers of the throughput test, 0: none")
    parser.add_argument("--mounts", type=int, default=2000, help="size of the large mount table, 0: none")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    options = parser.parse_args()
    own_mount_namespace()
    runtimes = {"gantry-run": os.path.abspath(options.gantry)}
    runtimes.update({n: p for n in ("crun", "runc") if (p := shutil.which(n))})
    figures = measure(options, runtimes)
    if options.output == "json":
        print(json.dumps(figures, indent=1))
    else:
        table(figures, "crun" if "crun" in figures else list(figures)[-1])


if __name__ == "__main__":
    main()
