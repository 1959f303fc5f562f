"""One line that shows how far a piece of work is. Apart from `posttrain.progress`, which takes seconds to import."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def progress_bar(total: int | None, label: str, unit: str) -> tqdm:
    """A bar that moves at every change on a terminal, and every ten seconds in a log."""
    return tqdm(
        total=total, desc=label, unit=unit, mininterval=0.2 if sys.stderr.isatty() else 10.0, dynamic_ncols=True
    )
