"""What the kernel alone takes for the work of a bridge ADD: the same requests over netlink, from one process that is running.

A pair of devices whose other end is in the container, the host's end a port of the bridge, up, hairpin; address, device up and
default route in the container; the host's neighbour entry; one element of an nf_tables map. What a plugin takes above this is
its own: its start, reading and writing files, JSON, looking at what is there.
"""

import ctypes
import os
import socket
import struct
import time

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_LINK, DELETE_LINK, GET_LINK, SET_LINK, NEW_ADDRESS, NEW_ROUTE, NEW_NEIGHBOUR = 16, 17, 18, 19, 20, 24, 28
CREATE, REPLACE, ECHO = 0x600, 0x500, 8
TABLE, MAP = "gantry-cni", "masq4"


def enter(namespace):
    if LIBC.setns(namespace, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


def attribute(kind, data):
    length = 4 + len(data)
    return struct.pack("HH", length, kind) + data + b"\0" * (-length % 4)


def text(kind, value):
    return attribute(kind, value.encode() + b"\0")


def number(kind, value):
    return attribute(kind, struct.pack("I", value))


def network(kind, value):
    return attribute(kind, struct.pack(">I", value))


def header(index=0, flags=0, mask=0, family=0):
    return struct.pack("BxHiII", family, 0, index, flags, mask)


class Netlink:
    def __init__(self, protocol=0):
        self.socket, self.sequence = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol), 0
        self.socket.bind((0, 0))

    def request(self, *messages, answers=None):
        """Sends (type, flags, body)s in one datagram and reads until so many are acknowledged; answers what else comes."""
        out = b""
        for kind, flags, body in messages:
            self.sequence += 1
            body += b"\0" * (-len(body) % 4)
            out += struct.pack("IHHII", 16 + len(body), kind, flags | 1 | (4 if answers is None else 0), self.sequence, 0) + body
        self.socket.send(out)
        left, found = len(messages) if answers is None else answers, []
        while left:
            data = self.socket.recv(65536)
            while data:
                length, kind = struct.unpack_from("IH", data)
                if kind == 2:
                    error = struct.unpack_from("i", data, 16)[0]
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    left -= 1
                else:
                    found.append(data[16:length])
                data = data[(length + 3) & ~3:]
        return found

    def index(self, name):
        # Without statistics.
        return struct.unpack_from("i", self.request((GET_LINK, 0, header() + text(3, name) + number(29, 8)))[0], 4)[0]


class Floor:
    """In the namespace of its caller; uses the bridge and the map of the plugins, so that both meet the same standing pods."""

    def __init__(self, bridge):
        self.host = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.route, self.filter, self.count = Netlink(), Netlink(12), 0
        self.bridge = self.route.index(bridge)

    def transaction(self, *messages):
        fence = struct.pack(">BBH", 0, 0, 10)
        middle = [(kind, flags | (4 if i + 1 == len(messages) else 0), struct.pack(">BBH", 1, 0, 0) + text(1, TABLE) + body)
                  for i, (kind, flags, body) in enumerate(messages)]
        self.filter.request((16, 0, fence), *middle, (17, 0, fence), answers=1)

    def add(self, name):
        """Attaches a namespace; answers milliseconds and what `remove` takes."""
        self.count += 1
        # The plugins do not come so far.
        address = bytes([10, 1]) + struct.pack(">H", 60000 + self.count)
        namespace = os.open(f"/run/netns/{name}", os.O_RDONLY)
        start = time.perf_counter()
        enter(namespace)
        inside = Netlink()
        enter(self.host)
        mac = attribute(1, b"\x0a\x58" + address)
        queues = number(31, 1) + number(32, 1)
        peer = attribute(1, header() + text(3, "eth0") + number(28, namespace) + queues + mac)
        port = f"floor{self.count}"
        made = self.route.request((NEW_LINK, CREATE | ECHO, header() + text(3, port) + queues + attribute(18, text(1, "veth") + attribute(2, peer))))
        index = struct.unpack_from("i", made[0], 4)[0] if made else self.route.index(port)
        self.route.request(
            (NEW_LINK, 0, header(index) + attribute(20, name.encode()) + attribute(26, attribute(10, attribute(8, b"\1")))),
            (NEW_LINK, 0, header(index, 1, 1) + number(10, self.bridge)),
            (SET_LINK, 0, header(index, family=7) + attribute(12 | 0x8000, attribute(4, b"\1"))),
            (NEW_NEIGHBOUR, REPLACE, struct.pack("BxHiHBB", 2, 0, self.bridge, 4, 0, 0) + attribute(1, address) + attribute(2, b"\x0a\x58" + address)))
        device = inside.index("eth0")
        inside.request(
            (NEW_ADDRESS, CREATE, struct.pack("BBBBi", 2, 16, 0, 0, device) + attribute(2, address) + attribute(1, address)),
            (NEW_LINK, 0, header(device, 1, 1)),
            (NEW_ROUTE, CREATE, struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + attribute(5, bytes([10, 1, 0, 1])) + number(4, device)))
        self.transaction((0xA0C, 0x600, self.element(address)))
        # The kernel brings the port's state up to date when it is asked for it.
        self.route.request((GET_LINK, 0, header(index) + number(29, 8)))
        took = 1000 * (time.perf_counter() - start)
        os.close(namespace)
        return took, (index, address)

    def element(self, address):
        accept = attribute(2, attribute(2, network(1, 1)))
        return text(2, MAP) + attribute(3, attribute(1, attribute(1, attribute(1, address)) + accept))

    def remove(self, made):
        index, address = made
        self.transaction((0xA0E, 0, self.element(address)))
        self.route.request((DELETE_LINK, 0, header(index)))
