#!/usr/bin/env python3
"""Compiles seccomp profiles with libseccomp, as runc does, for a test that compares the filters.

Reads one profile a line (JSON, the specification's form), writes one answer a line: {"filter": [[code, jt, jf, k], ...],
"unknown": [names that this libseccomp does not know], "refused": [rules that it does not take]}. Exit code 3: no libseccomp.
"""

import ctypes
import json
import os
import struct
import sys
import tempfile

ATTRIBUTE_NO_NEW_PRIVILEGES, ATTRIBUTE_OPTIMIZE = 3, 8
OPERATORS = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
ARCHITECTURES = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X32": 0x4000003E}
ACTIONS = {"ALLOW": 0x7FFF0000, "ERRNO": 0x50000, "KILL": 0, "KILL_THREAD": 0, "KILL_PROCESS": 0x80000000, "LOG": 0x7FFC0000,
           "NOTIFY": 0x7FC00000, "TRACE": 0x7FF00000, "TRAP": 0x30000}


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def library():
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint,
                                           ctypes.POINTER(Comparison)]
    lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    return lib


def action(name, number):
    value = ACTIONS[name.removeprefix("SCMP_ACT_")]
    return value | (1 if number is None else number) if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else value


def newer_elsewhere(lib, name, number):
    """Whether a call of the numbers that all architectures share is known for some of them only."""
    return number >= 424 and any(lib.seccomp_syscall_resolve_name_arch(a, name.encode()) < 0 for a in ARCHITECTURES.values())


def compiled(lib, profile):
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = lib.seccomp_init(default)
    unknown, refused = set(), []
    for name in profile.get("architectures", []):
        if name in ARCHITECTURES:
            lib.seccomp_arch_add(context, ARCHITECTURES[name])
    rules = profile.get("syscalls", [])
    lib.seccomp_attr_set(context, ATTRIBUTE_NO_NEW_PRIVILEGES, 0)
    if len(rules) > 8:
        lib.seccomp_attr_set(context, ATTRIBUTE_OPTIMIZE, 2)
    for rule in rules:
        verdict = action(rule["action"], rule.get("errnoRet"))
        if verdict == default:
            continue
        conditions = [Comparison(a["index"], OPERATORS.index(a["op"].removeprefix("SCMP_CMP_")) + 1, a["value"],
                                 a.get("valueTwo", 0)) for a in rule.get("args") or []]
        repeated = len({c.arg for c in conditions}) < len(conditions)
        for name in rule["names"]:
            number = lib.seccomp_syscall_resolve_name(name.encode())
            if number == -1 or newer_elsewhere(lib, name, number):
                unknown.add(name)
                continue
            for group in [[c] for c in conditions] if repeated else [conditions]:
                done = lib.seccomp_rule_add_array(context, verdict, number, len(group),
                                                  (Comparison * max(1, len(group)))(*group))
                if done:
                    refused.append([name, done])
    with tempfile.TemporaryFile() as file:
        failed = lib.seccomp_export_bpf(context, file.fileno())
        file.seek(0)
        code = file.read()
    lib.seccomp_release(context)
    if failed:
        raise OSError(-failed, os.strerror(-failed))
    return {"filter": list(struct.iter_unpack("<HBBI", code)), "unknown": sorted(unknown), "refused": refused}


def main():
    lib = library()
    for line in sys.stdin:
        print(json.dumps(compiled(lib, json.loads(line))))


if __name__ == "__main__":
    main()
