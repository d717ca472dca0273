"""A small process between us and the JVM: the JVM never outlives its owner, whatever kills the owner.

Run as a script with the standard library only: `python -I -S watchdog.py`, with the order as one line of JSON on its
standard input. In `owned` mode it ends the JVM when its standard input closes (the owner stopped it, exited or was killed) or when its parent is gone (a forked sibling
may keep the pipe open). If the watchdog itself is killed, Linux ends the JVM; being single-threaded it may ask for
that, which the owner, with its threads, may not: the signal is bound to the thread that forks.
In `detached` mode it starts the JVM, says its pid and leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_LOOK_AT_PARENT_S = 1.0


def main() -> int:
    """Carry out the order: command, folder, log, environment, keep (descriptors), owned, parent, remove, grace_s.

    Says the pid of the JVM on standard output and returns the JVM's exit status. `remove` is a folder to delete if
    the parent is gone: a living parent does so itself.
    """
    order = json.loads(_line(0))
    wake = _signals_as_bytes()
    child = _start(order)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, b"%d\n" % child.pid)
    if not order["owned"]:
        child.returncode = 0  # it is nobody's child from here on, and that is meant
        return 0
    if _wait(child, wake, order["parent"]):
        orphan = os.getppid() != order["parent"]
        _end(child, 0.0 if orphan and order["remove"] else order["grace_s"])
    if order["remove"] and os.getppid() != order["parent"]:
        _remove(Path(order["remove"]))
    return child.wait() & 0xFF


def _remove(folder: Path) -> None:
    """Delete a node's folder and, as the last node's watchdog, the temporary folder around it."""
    shutil.rmtree(folder, ignore_errors=True)
    if not list(folder.parent.glob("node-*")):
        shutil.rmtree(folder.parent, ignore_errors=True)


def _line(descriptor: int) -> bytes:
    """Read up to a newline, byte by byte: nothing may be left in a buffer that `select` does not see."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in {b"", b"\n"}:
        line += byte
    return bytes(line)


def _signals_as_bytes() -> int:
    """Turn signals into bytes on a pipe, so that one `select` waits for all there is."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return read


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    with Path(order["log"]).open("ab") as log:
        return subprocess.Popen(
            order["command"],
            cwd=order["folder"],
            env=order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=order["keep"],
            start_new_session=True,
            preexec_fn=_dies_with_me() if order["owned"] else None,  # noqa: PLW1509 - one thread only
        )


def _dies_with_me() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    control = ctypes.CDLL(None, use_errno=True).prctl
    me = os.getpid()

    def before_exec() -> None:
        control(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:
            os._exit(1)

    return before_exec


def _wait(child: subprocess.Popen[bytes], wake: int, parent: int) -> bool:
    """Block until the JVM ended (False) or it has to (True)."""
    while child.poll() is None:
        ready, _, _ = select.select([0, wake], [], [], _LOOK_AT_PARENT_S)
        if 0 in ready and not os.read(0, 1):
            return True
        if wake in ready and set(os.read(wake, 64)) - {signal.SIGCHLD}:
            return True
        if os.getppid() != parent:
            return True
    return False


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    if grace_s > 0:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    if child.poll() is None:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
