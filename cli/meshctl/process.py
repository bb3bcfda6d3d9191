"""A command in a fresh network namespace: a child that makes the namespace, waits until it is plumbed, and then
becomes the command. Decides how signals and exit statuses pass between the two; knows no network.
"""

import contextlib
import os
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from meshctl import netns
from meshctl.errors import Failed, reason

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # an ignored signal stays ignored over exec(3)
SI_KERNEL = 0x80  # si_code of what the terminal sends: it went to the whole foreground group, the command too
EXIT_NOT_FOUND = 127  # as shells have it
EXIT_NOT_EXECUTABLE = 126
EXIT_SIGNAL = 128  # plus the signal's number
ERRNO = struct.Struct("=i")


class Child:
    """The forked child. Raises Failed where it cannot make a namespace."""

    def __init__(self, argv: Sequence[str], *, fresh: bool = True) -> None:
        """``fresh``: in a namespace of its own; else it stays in this one."""
        self.argv = list(argv)
        said_read, said_write = os.pipe()
        go_read, go_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(said_read)
            os.close(go_write)  # so that the child sees the end of the pipe when its parent is killed
            _be_child(self.argv, said_write, go_read, fresh=fresh)
        os.close(said_write)
        os.close(go_read)
        self.said, self.go = said_read, go_write
        code = self._errno()
        if code:
            self.abandon()
            error = OSError(code, os.strerror(code))
            raise netns.refused("a network namespace cannot be made", error)

    @property
    def namespace(self) -> str:
        """The path of the child's namespace."""
        return f"/proc/{self.pid}/ns/net"

    def abandon(self) -> None:
        """End the child without its having become the command."""
        self._close()
        os.waitpid(self.pid, 0)

    def run(self) -> int:
        """Let the child become the command and return its exit status; the caller has blocked the signals.

        Raises Failed with ``status`` 126 or 127 where it cannot be executed.
        """
        os.write(self.go, b"!")
        code = self._errno()
        self._close()
        if code:
            os.waitpid(self.pid, 0)
            raise _not_executed(self.argv[0], code)
        return self._wait()

    def _wait(self) -> int:
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else EXIT_SIGNAL - code
            caught = signal.sigwaitinfo((*heeded(), signal.SIGCHLD))
            if caught.si_signo != signal.SIGCHLD and caught.si_code != SI_KERNEL:
                os.kill(self.pid, caught.si_signo)

    def _errno(self) -> int:
        """Return the errno that the child says: 0 for success and for the end of the pipe, which exec closes."""
        said = os.read(self.said, ERRNO.size)
        return int(ERRNO.unpack(said)[0]) if said else 0

    def _close(self) -> None:
        os.close(self.said)
        os.close(self.go)


class Interrupts:
    """Makes SystemExit of the signals that would end this process, so that what was begun is undone. Python runs
    the handler in the main thread, whichever thread the kernel gave the signal to.
    """

    def __init__(self) -> None:
        self.caught = 0
        self.deferring = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.caught = number
        if not self.deferring:
            raise SystemExit(EXIT_SIGNAL + number)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it no signal interrupts; one that came acts when it ends."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
            if self.caught:
                raise SystemExit(EXIT_SIGNAL + self.caught)


@contextlib.contextmanager
def signals_raised() -> Iterator[Interrupts]:
    """Within it, a signal that would end this process raises SystemExit instead."""
    interrupts = Interrupts()
    before = {number: signal.signal(number, interrupts) for number in heeded()}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heeded() -> list[signal.Signals]:
    """Return those of FORWARDED that whoever started this process did not have ignored (nohup has SIGHUP)."""
    return [number for number in FORWARDED if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Within it, signals wait for Child.run to fetch them. What comes after the command's end is dropped."""
    held = (*heeded(), signal.SIGCHLD)
    child_handler = signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # inherited SIG_IGN would reap the child unseen
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        while signal.sigtimedwait(held, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGCHLD, child_handler)


def _be_child(argv: list[str], said: int, go: int, *, fresh: bool) -> NoReturn:
    """Run in the child: never returns into the parent's code."""
    try:
        for number in heeded():
            signal.signal(number, signal.SIG_DFL)
        if fresh:
            netns.unshare()
        os.write(said, ERRNO.pack(0))
        if os.read(go, 1):
            for number in IGNORED_BY_PYTHON:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp(argv[0], argv)  # noqa: S606  # the operator's own command
    except OSError as error:
        os.write(said, ERRNO.pack(error.errno or 0))
    finally:
        os._exit(EXIT_NOT_FOUND)


def _not_executed(program: str, code: int) -> Failed:
    error = OSError(code, os.strerror(code))
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Failed(f"command not found: {program}", status=EXIT_NOT_FOUND)
    return Failed(f"{program} cannot be executed: {reason(error)}", status=EXIT_NOT_EXECUTABLE)
