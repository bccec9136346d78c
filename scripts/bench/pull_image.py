#!/usr/bin/env python3
"""Makes an image that is always the same and puts it into a registry, for pull.sh.

Layers are made of what images are made of: many small files and some big ones, words, machine code and what is compressed
already, with links, owners and modes, compressed by gzip to some 45 percent. Nothing of this machine goes into it, so that figures
of two machines are of the same bytes.

usage: pull_image.py REGISTRY REPOSITORY TAG LAYERS MIB WORK [one-file]
Prints `<digest> <compressed bytes>` of each layer. WORK holds one layer per core for a while.
"""

import hashlib
import http.client
import io
import itertools
import json
import multiprocessing
import os
import random
import sys
import tarfile
import zlib

KIB, MIB = 1 << 10, 1 << 20
POOL = 4 * MIB
EPOCH = 1_700_000_000


def zipf(count):
    """Cumulative weights of a vocabulary in which few words are most of the text."""
    return list(itertools.accumulate(1 / (n + 3) for n in range(count)))


def words(rng):
    letters, weights = "etaoinshrdlucmfwypvbgkjqxz", list(range(27, 1, -1))
    vocabulary = ["".join(rng.choices(letters, weights, k=rng.randint(2, 11))) for _ in range(20_000)]
    text, have = [], 0
    while have < POOL:
        line = " ".join(rng.choices(vocabulary, cum_weights=CUMULATIVE_WORDS, k=rng.randint(3, 16)))
        text.append(line)
        have += len(line) + 1
    return "\n".join(text).encode()[:POOL]


def code(rng):
    instructions = [rng.randbytes(rng.randint(2, 8)) for _ in range(3_000)]
    parts, have = [], 0
    while have < POOL:
        some = rng.choices(instructions, cum_weights=CUMULATIVE_CODE, k=400)
        # Addresses and constants in between do not repeat.
        for at in range(0, len(some), 29):
            some[at] = rng.randbytes(4)
        block = b"".join(some)
        parts.append(block)
        have += len(block)
    return b"".join(parts)[:POOL]


CUMULATIVE_WORDS, CUMULATIVE_CODE = zipf(20_000), zipf(3_000)


class Layer(io.RawIOBase):
    """Where a tar is written to: compressed into a file, both digests on the way."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.plain, self.packed, self.size = hashlib.sha256(), hashlib.sha256(), 0
        self.gzip = zlib.compressobj(6, zlib.DEFLATED, 31)

    def writable(self):
        return True

    def write(self, data):
        self.plain.update(data)
        self._put(self.gzip.compress(data))
        return len(data)

    def end(self):
        self._put(self.gzip.flush())
        self.file.close()

    def _put(self, data):
        self.packed.update(data)
        self.size += len(data)
        self.file.write(data)


class Content(io.RawIOBase):
    """A file's bytes, made while they are read: pieces of the pools from anywhere."""

    def __init__(self, rng, pool, size):
        self.rng, self.pool, self.left = rng, pool, size

    def readable(self):
        return True

    def read(self, n=-1):
        n = min(self.left, 64 * KIB if n < 0 else n)
        self.left -= n
        if self.pool is None:
            return self.rng.randbytes(n)
        out = b""
        while len(out) < n:
            at = self.rng.randrange(POOL - 48 * KIB)
            out += self.pool[at : at + min(n - len(out), 48 * KIB)]
        return out


def sizes(rng, total):
    """A third of the bytes in big files, the rest in many small ones."""
    while total > 0:
        if rng.random() < 0.0012:
            size = rng.randint(4 * MIB, 16 * MIB)
        elif rng.random() < 0.2:
            size = rng.randint(16 * KIB, 200 * KIB)
        else:
            size = int(2 ** rng.uniform(6, 14))
        size = min(size, total)
        total -= size
        yield size


def make(job):
    number, total, path, one_file = job
    rng = random.Random(number)
    out = Layer(path)
    tar = tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=64 * KIB)

    def add(name, kind, mode=0o644, size=0, link="", content=None):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, size, link, EPOCH + number
        info.uid = info.gid = 1000 if rng.random() < 0.1 else 0
        tar.addfile(info, content)

    folder, last = f"layer{number}", None
    add(folder, tarfile.DIRTYPE, 0o755)
    if one_file:
        half = total // 2
        add(f"{folder}/noise", tarfile.REGTYPE, size=half, content=Content(rng, None, half))
        add(f"{folder}/code", tarfile.REGTYPE, size=total - half, content=Content(rng, POOLS[-1], total - half))
    else:
        for n, size in enumerate(sizes(rng, total)):
            if n % 40 == 0:
                at = f"{folder}/d{n // 1600}" if n % 1600 == 0 else f"{folder}/d{n // 1600}/e{n // 40}"
                add(at, tarfile.DIRTYPE, 0o755)
            pool = rng.choice(POOLS) if rng.random() < 0.92 else None
            name = f"{at}/some-name-{n}.{rng.choice(('so', 'py', 'txt', 'h', 'json'))}"
            add(name, tarfile.REGTYPE, rng.choice((0o644, 0o644, 0o755)), size, content=Content(rng, pool, size))
            if rng.random() < 0.04:
                add(f"{at}/link-{n}", tarfile.SYMTYPE, 0o777, link=os.path.basename(name))
            if rng.random() < 0.01 and last:
                add(f"{at}/hard-{n}", tarfile.LNKTYPE, link=last)
            last = name
    tar.close()
    out.end()
    return path, out.packed.hexdigest(), out.plain.hexdigest(), out.size


def send(registry, repository, digest, body, size):
    link = http.client.HTTPConnection(registry, timeout=300)
    link.request("POST", f"/v2/{repository}/blobs/uploads/")
    answer = link.getresponse()
    answer.read()
    place = answer.getheader("Location")
    if place.startswith("http://"):
        place = "/" + place.split("/", 3)[3]
    kind = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    link.request("PUT", f"{place}&digest=sha256:{digest}", body, kind)
    answer = link.getresponse()
    said = answer.read()
    if answer.status != 201:
        sys.exit(f"upload of {digest}: {answer.status} {said[:300]!r}")
    link.close()


# Made once, before the processes that make the layers.
POOLS = [words(random.Random("a")), words(random.Random("b")), code(random.Random("c"))]


def main():
    registry, repository, tag, layers, mib, work = sys.argv[1:7]
    one_file = sys.argv[7:] == ["one-file"]
    each = int(mib) * MIB // int(layers)
    jobs = [(n, each, f"{work}/layer{n}", one_file) for n in range(int(layers))]
    manifest_layers, diffs = [], []
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        for path, digest, diff, size in pool.imap(make, jobs):
            with open(path, "rb") as body:
                send(registry, repository, digest, body, size)
            os.unlink(path)
            kind = "application/vnd.oci.image.layer.v1.tar+gzip"
            manifest_layers.append({"mediaType": kind, "digest": f"sha256:{digest}", "size": size})
            diffs.append(f"sha256:{diff}")
            print(digest, size, flush=True)
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}
    config = json.dumps(config).encode()
    digest = hashlib.sha256(config).hexdigest()
    send(registry, repository, digest, config, len(config))
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": f"sha256:{digest}",
            "size": len(config),
        },
        "layers": manifest_layers,
    }
    link = http.client.HTTPConnection(registry, timeout=60)
    link.request("PUT", f"/v2/{repository}/manifests/{tag}", json.dumps(manifest), {"Content-Type": kind})
    answer = link.getresponse()
    if answer.status != 201:
        sys.exit(f"manifest: {answer.status} {answer.read()[:300]!r}")


if __name__ == "__main__":
    main()
