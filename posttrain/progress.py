"""Progress bars."""

from __future__ import annotations

import os
import sys

from tqdm.auto import tqdm


def progress_bar(total: int | None, label: str, unit: str, done: int = 0) -> tqdm:
    """Return a bar that is updated at every change on a terminal, and every ten seconds in a log. Only rank 0 shows it."""
    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    silent = os.environ.get("RANK", "0") != "0"
    return tqdm(
        total=total, initial=done, desc=label, unit=unit, mininterval=interval_s, dynamic_ncols=True, disable=silent
    )


def disable_library_bars() -> None:
    """Turn off the bars of transformers (loading and saving weights) and datasets (selecting rows)."""
    import datasets  # here, because `posttrain check` must not import them
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
