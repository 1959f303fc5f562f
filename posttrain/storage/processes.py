"""Names of processes, with which a later process finds out whether an earlier one is still alive."""

from __future__ import annotations

import os
import socket

import psutil


def this_process() -> str:
    """Return the name of this process: `host:pid:start time`."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def has_died(process: str) -> bool:
    """Return whether a name belongs to a process of this host that has ended. Of other hosts nothing is known."""
    try:
        host, pid, started = process.rsplit(":", 2)
        number, time = int(pid), float(started)
    except ValueError:
        return False
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(number)
        # Pids are reused, so compare start times, with a tolerance for clock adjustments. Zombies have ended.
        return abs(found.create_time() - time) > 2 or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
