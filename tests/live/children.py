"""Real processes whose facts the tests set themselves.

    with child() as c:
        c.do("os.setresuid(1, 2, 3)")          # runs in the child; returns when it is done
        c.ask("os.getresuid()")                # evaluates there; JSON values come back

A child is this interpreter in a program of a few lines: it answers one line of JSON for each line
that it is sent, so that every step is a handshake and no test sleeps. It ends when its input
ends, or is killed by its pid after a while; grandchildren that it made stand in its list ``kids``
and are killed by it. PRELUDE gives it the raw system calls.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

SRC = str(Path(__file__).parents[2] / "src")
ROOTS = [path for path in sys.path if path.endswith("site-packages")]

# x86_64 and the generic table (aarch64, riscv64): arch/x86/entry/syscalls/syscall_64.tbl,
# include/uapi/asm-generic/unistd.h.
SYSCALLS = {
    "x86_64": {"setresuid": 117, "setresgid": 119, "capset": 126, "exit": 60, "gettid": 186},
    "generic": {"setresuid": 147, "setresgid": 149, "capset": 91, "exit": 93, "gettid": 178},
}[platform.machine() if platform.machine() == "x86_64" else "generic"]

PRELUDE = """
import ctypes, json, os, signal, socket, sys, threading, time, traceback
libc = ctypes.CDLL(None, use_errno=True)
SYS = json.loads(sys.argv[1])
sys.path[:0] = json.loads(sys.argv[2])
kids = []
CLONE_VM, CLONE_NEWTIME, CLONE_FS = 0x100, 0x80, 0x200
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER = 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000

def ok(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

def unshare(flags):
    ok(libc.unshare(flags))

def new_user_namespace(flags=0):
    # In which our uid and gid are mapped to 0: without a mapping none can be made in it.
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | flags)
    for name, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
        with open("/proc/self/" + name, "w") as file:
            file.write(text)

def prctl(option, a=0, b=0, c=0, d=0):
    word = ctypes.c_ulong
    return ok(libc.prctl(option, word(a), word(b), word(c), word(d)))

def raw(name, *args):
    # One thread only: libc's wrappers would set the ids of all.
    return ok(libc.syscall(SYS[name], *(ctypes.c_long(a) for a in args)))

def capset(inh, prm, eff):
    # struct __user_cap_header_struct and two data structs: include/uapi/linux/capability.h
    low, high = lambda v: v & 0xFFFFFFFF, lambda v: v >> 32
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(low(eff), low(prm), low(inh), high(eff), high(prm), high(inh))
    ok(libc.syscall(SYS["capset"], header, data))

def filter_all():
    # A seccomp filter of one instruction, BPF_RET | BPF_K: SECCOMP_RET_ALLOW.
    class Program(ctypes.Structure):
        _fields_ = [("n", ctypes.c_ushort), ("code", ctypes.c_void_p)]
    code = ctypes.create_string_buffer(b"\\x06\\0\\0\\0\\0\\0\\xff\\x7f", 8)
    program = Program(1, ctypes.addressof(code))
    prctl(22, 2, ctypes.addressof(program))

def mount(source, target, kind, flags=0, data=None):
    code = lambda t: None if t is None else t.encode()
    ok(libc.mount(code(source), code(target), code(kind), ctypes.c_ulong(flags), code(data)))

def in_thread(work):
    # Runs work() in a new thread, which then waits; returns its tid once work is done.
    done, out = threading.Event(), []
    def run():
        out.append(raw("gettid"))
        try:
            work()
        except BaseException as exc:
            out.append(exc)
        done.set()
        threading.Event().wait()
    threading.Thread(target=run, daemon=True).start()
    done.wait()
    if len(out) > 1:
        raise out[1]
    return out[0]

def fork(work=None):
    # A grandchild that does work() and waits; returns its pid once work is done.
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        prctl(1, 9)  # PR_SET_PDEATHSIG: ends with its parent
        for fd in (0, 1, r):
            os.close(fd)
        try:
            work and work()
            os.write(w, b"!")
            os.close(w)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(w)
    kids.append(pid)
    if os.read(r, 1) != b"!":
        raise RuntimeError("the grandchild failed")
    os.close(r)
    return pid

def clone_vm():
    # A process that shares our address space: sleep(600) on a stack of its own.
    stack = ctypes.create_string_buffer(1 << 16)
    stacks.append(stack)
    top = (ctypes.addressof(stack) + (1 << 16)) & ~15
    sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
    libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    pid = ok(libc.clone(sleep, top, CLONE_VM | signal.SIGCHLD, 600))
    kids.append(pid)
    return pid
stacks = []

def reply(value):
    os.write(1, json.dumps(value, default=repr).encode() + b"\\n")

def serve():
    for line in iter(sys.stdin.readline, ""):
        verb, code = json.loads(line)
        try:
            if verb == "do":
                exec(code, globals())
                reply(["done", None])
            else:
                reply(["value", eval(code, globals())])
        except BaseException:
            reply(["failed", traceback.format_exc()])
    for pid in kids:
        try:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        except OSError:
            pass
    os._exit(0)

reply(["ready", os.getpid()])
"""
PROGRAM = PRELUDE + "serve()\n"


class ChildError(Exception):
    """The code that a child was sent raised; the message is its traceback."""


class Child:
    """A process that does what it is told; a context manager. ``pid`` is its pid."""

    def __init__(self, before: str = "", *, program: str = PROGRAM) -> None:
        paths = json.dumps([SRC, *ROOTS])
        command = [sys.executable, "-ISs", "-c", program, json.dumps(SYSCALLS), paths]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self._popen.pid
        self._answer()
        if before:
            self.do(before)

    def do(self, code: str) -> None:
        """Run statements in the child."""
        self._send("do", code)
        self._answer()

    def ask(self, code: str) -> Any:
        """Evaluate an expression in the child: its JSON value."""
        self._send("ask", code)
        return self._answer()

    def become(self, code: str) -> None:
        """Send code that ends in an execve, or otherwise in a new greeting, and wait for it."""
        self._send("do", code)
        self._answer()

    def _send(self, verb: str, code: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps([verb, code]).encode() + b"\n")

    def _answer(self) -> Any:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise ChildError(f"process {self.pid} ended, status {self._popen.wait(10)}")
        kind, value = json.loads(line)
        if kind == "failed":
            raise ChildError(value)
        return value

    def stop(self) -> None:
        """End it: by the end of its input, then by a signal to its pid."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(5)

    def kill(self) -> None:
        """End it by SIGKILL, for a child that cannot hear."""
        self._popen.kill()
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def child(before: str = "") -> Child:
    """Start a child that has run *before*."""
    return Child(before)


# For Child.become: the same program again, in a new address space.
EXEC_SELF = "os.execv(sys.executable, [sys.executable, '-ISs', '-c', {program!r}, *sys.argv[1:]])"


def exec_again(c: Child) -> None:
    """Have *c* execve the program that it is running: all but its mm stays the same."""
    c.become(EXEC_SELF.format(program=PROGRAM))
