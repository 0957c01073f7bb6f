# SPDX-License-Identifier: Apache-2.0
"""The enclosure: a small program that locks itself in and then becomes the training child (law 12).

Run as ``python -I -S enclosure.py <policy descriptor> <report descriptor>``; the policy is one JSON document.
It is started fresh for every child, because Landlock and seccomp bind only threads that exist when they are
applied: a program with one thread has no other. It uses the standard library alone and imports nothing of
the product. In this order it: takes an own network namespace where it may, drops groups, gid and uid (if a
uid is given), drops every capability, sets resource bounds, asks to die with its parent, forbids new
privileges, applies Landlock file, TCP, socket and signal rules, applies a seccomp filter that leaves no
socket family, reports what holds as one JSON line, and becomes the command with a clean environment.

What it does not protect against: flaws of the kernel, side channels, and a reader of this machine's memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_CLONE_NEWNET = 0x40000000
_SYS_LANDLOCK_CREATE = 444
_SYS_LANDLOCK_ADD = 445
_SYS_LANDLOCK_RESTRICT = 446

# Landlock file rights by the bit they were given (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FS_MASK_BY_ABI = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
_FS_MASK = 0xFFFF

# Calls that could open a door the file rules do not know, by (x86_64, aarch64) number: sockets, tracing and
# other processes' memory, io_uring (it opens sockets by itself), namespaces and mounts, keys, modules, and
# leaving the process group by which the parent ends us.
_FORBIDDEN_CALLS = {
    "socket": (41, 198),
    "connect": (42, 203),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
}
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_libc = ctypes.CDLL(None, use_errno=True)


class EnclosureFailed(Exception):
    """A wall could not be raised; the command must not run."""


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise EnclosureFailed(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def drop_identity(uid: int) -> None:
    """Becomes ``uid`` (and the group of the same number) for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Gives up every capability, also those that a root-owned program could regain on exec."""
    _libc.prctl(_PR_CAP_AMBIENT, 4, 0, 0, 0)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 and capability > 40:
            break
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    _checked(_libc.capset(header, struct.pack("=6I", 0, 0, 0, 0, 0, 0)), "capset")


def set_bounds(bounds: dict[str, int]) -> None:
    """Applies resource limits by name (``AS``, ``FSIZE``, ``NOFILE``, ``NPROC``, ``CPU``, ``CORE``)."""
    for name, value in bounds.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)  # noqa: PLW2901
        resource.setrlimit(kind, (value, value))


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    if os.getppid() != parent_pid:
        raise EnclosureFailed("the workshop is gone")


def own_network() -> bool:
    """Moves into a network namespace without interfaces; False where this user may not."""
    return bool(_libc.unshare(_CLONE_NEWNET) == 0)


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 without Landlock."""
    return max(0, int(_libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def open_rules(policy: dict[str, Any]) -> list[tuple[int, int]]:
    """Opens every path of the policy as (descriptor, rights), while the platform's identity still may.

    A missing path is an error: a typing mistake in a policy must not pass as a stricter policy.
    """
    rules = []
    for paths, rights in (
        (policy["readable"], _READ),
        (policy["writable"], _FS_MASK & ~_EXECUTE & ~_IOCTL_DEV),
        (policy["devices"], _READ_FILE | _WRITE_FILE | _IOCTL_DEV),
    ):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError as err:
                raise EnclosureFailed(f"a path of the policy cannot be opened: {err.strerror}") from err
            is_folder = os.path.isdir(path)  # noqa: PTH112
            rules.append((descriptor, rights if is_folder else rights & _FILE_RIGHTS))
    return rules


def apply_landlock(rules: list[tuple[int, int]]) -> int:
    """Allows what the rules name and nothing else; returns the ABI that was applied."""
    abi = landlock_abi()
    if abi < 1:
        raise EnclosureFailed("this kernel has no Landlock")
    handled = _FS_MASK_BY_ABI.get(abi, _FS_MASK)
    # fs rights; TCP bind and connect (ABI 4); abstract unix sockets and signals (ABI 6)
    attributes = struct.pack("=QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _checked(
        _libc.syscall(_SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset"
    )
    for descriptor, rights in rules:
        rule = struct.pack("=Qi", rights & handled, descriptor)
        _checked(_libc.syscall(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0), "landlock_add_rule")
        os.close(descriptor)
    _checked(_libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    return abi


def apply_seccomp() -> bool:
    """Forbids the calls of ``_FORBIDDEN_CALLS`` with EPERM; False on an architecture it does not know."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    audit_arch, column = known
    load_word, jump_equal, jump_at_least, ret = 0x20, 0x15, 0x35, 0x06
    kill, deny, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    program = [
        (load_word, 0, 0, 4),  # the architecture of the call
        (jump_equal, 1, 0, audit_arch),
        (ret, 0, 0, kill),
        (load_word, 0, 0, 0),  # its number
        (jump_at_least, 0, 1, 0x40000000),  # the x32 table would bypass the numbers below
        (ret, 0, 0, kill),
    ]
    for numbers in _FORBIDDEN_CALLS.values():
        program += [(jump_equal, 0, 1, numbers[column]), (ret, 0, 0, deny)]
    program.append((ret, 0, 0, allow))
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    descriptor = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _checked(_libc.prctl(_PR_SET_SECCOMP, 2, descriptor, 0, 0), "seccomp")
    return True


def enclose(policy: dict[str, Any]) -> dict[str, Any]:
    """Raises every wall of the policy around this process.

    Returns:
        What holds: ``landlock_abi``, ``seccomp``, ``own_network``, ``own_uid``.

    Raises:
        EnclosureFailed: if a wall that every grade needs cannot be raised.
    """
    rules = open_rules(policy)
    network = own_network()
    uid = policy.get("uid")
    if uid is not None:
        drop_identity(int(uid))
    drop_capabilities()
    set_bounds(policy.get("bounds", {}))
    die_with_parent(int(policy["parent_pid"]))
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    abi = apply_landlock(rules)
    seccomp = apply_seccomp()
    if not (seccomp or network or abi >= 4):
        raise EnclosureFailed("nothing here can take the network away")
    return {
        "landlock_abi": abi,
        "seccomp": seccomp,
        "own_network": network,
        "own_uid": uid is not None,
    }


def main() -> int:
    """Reads the policy, encloses, reports, becomes the command."""
    policy_fd, report_fd = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(policy_fd, "rb") as source:
        policy = json.loads(source.read())
    try:
        os.chdir(policy["directory"])
        report = enclose(policy)
    except (EnclosureFailed, OSError) as err:
        os.write(report_fd, json.dumps({"failed": str(err)}).encode() + b"\n")
        return 126
    os.write(report_fd, json.dumps(report).encode() + b"\n")
    os.close(report_fd)
    os.umask(0o077)
    command = policy["command"]
    try:
        os.execve(command[0], command, policy["environment"])  # noqa: S606
    except OSError as err:
        sys.stderr.write(f"the command cannot be executed: {err.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
