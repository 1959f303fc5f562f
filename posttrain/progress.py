"""A bar that shows the progress of a piece of work."""

from __future__ import annotations

import os
import sys

from tqdm.auto import tqdm


def progress_bar(total: int | None, label: str, unit: str, done: int = 0) -> tqdm:
    """A bar that moves at every change on a terminal, and every ten seconds in a log; of several processes' the first's."""
    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    silent = os.environ.get("RANK", "0") != "0"
    return tqdm(
        total=total, initial=done, desc=label, unit=unit, mininterval=interval_s, dynamic_ncols=True, disable=silent
    )
