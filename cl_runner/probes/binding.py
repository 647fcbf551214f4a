"""Bind this process's hands by what the kernel offers, then start a command in its place. Standard library only.

`python binding.py SECONDS MEMORY COMMAND ...`, in the folder that the command may write to; its last argument will say
what holds it. A process of its own memory follows, so that nothing that talks to the kernel is left in the program's.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import struct
import sys

FILE_BYTES = 16 << 20

# Numbers of linux/sched.h, sys/mount.h, sys/prctl.h, linux/landlock.h, linux/seccomp.h, linux/bpf_common.h.
NEW_USER, NEW_NETWORK, NEW_MOUNTS, THREAD = 0x10000000, 0x40000000, 0x20000, 0x10000
PRIVATE, RECURSIVE, READ_ONLY = 1 << 18, 1 << 14, 1
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on all machines
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x50000
#: Name of a machine: how a filter knows it, which column of CALLS has its numbers.
MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2), "riscv64": (0xC00000F3, 2)}
#: System calls that are refused: name, number on x86-64, number on machines with Linux's common table. They change the
#: mode, owner, time or attributes of files, even by a descriptor that is open for reading only; begin processes; reach
#: other processes; leave something behind or change the machine; connect; or get past a filter.
CALLS = """
    chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452  chown 92 -  fchown 93 55  lchown 94 -
    fchownat 260 54  utime 132 -  utimes 235 -  futimesat 261 -  utimensat 280 88  setxattr 188 5  lsetxattr 189 6
    fsetxattr 190 7  removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16  setxattrat 463 463
    removexattrat 466 466  file_setattr 469 469  open_by_handle_at 304 265

    fork 57 -  vfork 58 -  execveat 322 281  tkill 200 130  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
    pidfd_send_signal 424 424  pidfd_getfd 438 438  ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271
    process_madvise 440 440  setpriority 141 140  ioprio_set 251 30  sched_setaffinity 203 122
    sched_setscheduler 144 119  sched_setparam 142 118  sched_setattr 314 274  migrate_pages 256 238  move_pages 279 239
    setrlimit 160 164

    mount 165 40  umount2 166 39  move_mount 429 429  open_tree 428 428  fsopen 430 430  mount_setattr 442 442
    pivot_root 155 41  chroot 161 51  unshare 272 97  setns 308 268  shmget 29 194  semget 64 190  msgget 68 186
    mq_open 240 180  settimeofday 164 170  clock_settime 227 112  clock_adjtime 305 266  adjtimex 159 171
    sethostname 170 161  setdomainname 171 162  reboot 169 142  swapon 167 224  acct 163 89  quotactl 179 60
    init_module 175 105  finit_module 313 273  kexec_load 246 104  keyctl 250 219  add_key 248 217  request_key 249 218

    socket 41 198  connect 42 203  bind 49 200  sendmsg 46 211  sendmmsg 307 269
    bpf 321 280  perf_event_open 298 241  userfaultfd 323 282  io_uring_setup 425 425
"""
#: Questions and settings of an own descriptor: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
#: F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS: no leases, notices or signals on files.
FCNTLS = (*range(8), 1030, 1033, 1034)


def limit(kind: int, most: int) -> None:
    """No more than `most` of a resource, and no more than was allowed before."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def leave_network() -> bool:
    """Move into a network namespace where nothing is connected, and from /proc, if the system permits it.

    /proc has the memory of this process and of others as files.
    """
    libc = ctypes.CDLL(None)
    own, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_NETWORK | NEW_MOUNTS) != 0:
        if libc.unshare(NEW_USER | NEW_NETWORK | NEW_MOUNTS) != 0:
            return False
        # Without a name in its new user namespace the process could create no file.
        for path, text in (("setgroups", "deny"), ("uid_map", f"{own} {own} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{path}", "w", encoding="ascii") as file:
                file.write(text)
    if libc.mount(b"none", b"/", None, ctypes.c_ulong(RECURSIVE | PRIVATE), None) == 0:
        libc.mount(b"none", b"/proc", b"tmpfs", ctypes.c_ulong(READ_ONLY), b"size=4k")
    return True


def write_only_here() -> bool:
    """Let Landlock refuse writing outside this folder, TCP, and access to other processes, as far as it can."""
    call = ctypes.CDLL(None).syscall
    version = call(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # Of LANDLOCK_ACCESS_FS: write a file (bit 1); remove and make files, folders and links (4 to 12); move between
    # folders (13, since version 2); truncate (14, since 3). Then TCP (since 4), abstract sockets and signals (since 6).
    write = 1 << 1
    change = write | sum(1 << bit for bit in range(4, 13)) | (version >= 2) << 13 | (version >= 3) << 14
    devices = 1 << 6 | 1 << 11  # a superuser's own device file would be the disk
    rules = struct.pack("=QQQ", change, 3, 3)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = call(LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    for path, allowed in ((".", change & ~devices), (os.devnull, write)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, place), 0)
    return bool(call(LANDLOCK_RESTRICT, ruleset, 0) == 0)


def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """An instruction of a filter: struct sock_filter."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def answer(error: int = 0) -> bytes:
    """The filter's end: allowed, or an error number."""
    return step(RETURN, FAIL | error if error else ALLOW)


def only(argument: int, *values: int) -> bytes:
    """Allowed if an argument's lower half has one of these values."""
    accept = b"".join(step(EQUAL, value, 0, 1) + answer() for value in values)
    return step(LOAD, 16 + 8 * argument) + accept + answer(errno.EPERM)


def calls_of(column: int) -> dict[int, bytes]:
    """What the filter does with a system call, by its number."""
    words = CALLS.split()
    rules = {int(words[i + column]): answer(errno.EPERM) for i in range(0, len(words), 3) if words[i + column] != "-"}
    threads_only = step(LOAD, 16) + step(ANY_BIT, THREAD, 0, 1) + answer() + answer(errno.EPERM)
    special = {
        (56, 220): threads_only,  # clone
        (435, 435): answer(errno.ENOSYS),  # clone3, whose flags no filter can read: the C library asks clone then
        (62, 129): only(0, os.getpid()),  # kill
        (234, 131): only(0, os.getpid()),  # tgkill
        (302, 261): only(2, 0),  # prlimit64 that only asks
        (44, 206): only(4, 0),  # sendto without an address
        (16, 29): only(1, *IOCTLS),
        (72, 25): only(1, *FCNTLS),
    }
    return rules | {numbers[column - 1]: rule for numbers, rule in special.items()}


def refuse_calls() -> bool:
    """Let the kernel (seccomp) answer what CALLS names with "operation not permitted", for good."""
    machine = MACHINES.get(os.uname().machine)
    if machine is None or sys.maxsize < 1 << 32:
        return False
    architecture, column = machine
    # Calls of another architecture, and of x86-64's other table, have other numbers.
    program = step(LOAD, 4) + step(EQUAL, architecture, 1, 0) + answer(errno.EPERM)
    program += step(LOAD, 0) + step(AT_LEAST, 1 << 30, 0, 1) + answer(errno.EPERM)
    for number, rule in calls_of(column).items():
        program += step(EQUAL, number, 0, len(rule) // 8) + rule
    program += answer()
    held = ctypes.create_string_buffer(program, len(program))
    rules = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    none = ctypes.c_ulong(0)
    return bool(ctypes.CDLL(None).prctl(SECCOMP, ctypes.c_ulong(FILTER), rules, none, none) == 0)


def bind(seconds: float, memory: int) -> str:
    """All that the system offers; says what holds."""
    linux = sys.platform == "linux"
    alone = linux and leave_network()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_CPU, math.ceil(seconds) + 1)
    if sys.platform != "darwin":  # refuses it
        limit(resource.RLIMIT_AS, memory)
    if linux:
        no = ctypes.c_ulong(0)
        ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, ctypes.c_ulong(1), no, no, no)
    walled = linux and write_only_here()
    filtered = linux and refuse_calls()
    if not filtered:  # counts threads as well; the superuser is exempt
        limit(resource.RLIMIT_NPROC, 0)
    held = (("network", alone, "namespace"), ("files", walled, "landlock"), ("calls", filtered, "seccomp"))
    return ", ".join(f"{what} {by if kernel else 'hook'}" for what, kernel, by in held)


if __name__ == "__main__":
    held = bind(float(sys.argv[1]), int(sys.argv[2]))
    os.execv(sys.argv[3], [*sys.argv[3:], held])
