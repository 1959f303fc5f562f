"""A time limit on code of others that runs in Python, such as a chat template."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TimeLimitExceeded(Exception):
    """The code ran for longer than its limit."""


class _Watch(threading.Thread):
    """Raises `TimeLimitExceeded` in threads whose limit has passed. It is one thread for all, so setting a limit is cheap."""

    def __init__(self) -> None:
        super().__init__(name="time-limit", daemon=True)
        self.lock = threading.Lock()
        self.deadlines: dict[int, float] = {}

    def run(self) -> None:
        while True:
            time.sleep(0.25)
            with self.lock:
                now = time.monotonic()
                for thread in [thread for thread, deadline in self.deadlines.items() if deadline < now]:
                    del self.deadlines[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(TimeLimitExceeded)
                    )


_watches: list[_Watch] = []
_creating = threading.Lock()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitExceeded` inside if it takes longer. A single call into C, such as a long power, is not interrupted."""
    watch, thread = _started(), threading.get_ident()
    watch.deadlines[thread] = time.monotonic() + seconds
    try:
        yield
    finally:
        with watch.lock:
            is_late = watch.deadlines.pop(thread, None) is None
        if is_late:
            _wait_for_exception()


def _wait_for_exception() -> None:
    """Let an exception arrive that was sent at the last moment, so that it does not hit other code."""
    for _ in range(1000):
        time.sleep(0)


def _started() -> _Watch:
    """Return the watch of this process: after a fork the thread is gone."""
    if not (_watches and _watches[-1].is_alive()):
        with _creating:
            if not (_watches and _watches[-1].is_alive()):
                _watches.append(_Watch())
                _watches[-1].start()
    return _watches[-1]
