"""Rows as they are trained, in lines of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from posttrain.chat.trained_text import TrainedRow
from posttrain.storage.plain_text import plain_text

OPEN, CLOSE = "⟦", "⟧"
"""Around the tokens under the loss."""
LONGEST = 1200
"""Characters that are shown of a part."""


def trained_lines(rows: Sequence[TrainedRow], width: int) -> Iterator[str]:
    """Yield rows as they are trained; what is under the loss stands in ⟦…⟧."""
    if rows:
        yield f"as trained, first rows of each source; {OPEN}under the loss{CLOSE}:"
    for row in rows:
        yield f"  {plain_text(row.where)}"
        for part in row.parts:
            yield f"    {part.name}, {part.n_tokens} tokens"
            text = "".join(f"{OPEN}{piece}{CLOSE}" if trained else piece for piece, trained in part.pieces)
            for line in plain_text(shortened(text)).splitlines() or [""]:
                yield from textwrap.wrap(
                    line, max(20, width), initial_indent=" " * 6, subsequent_indent=" " * 6, replace_whitespace=False
                ) or [""]


def shortened(text: str) -> str:
    """Return a text without its middle if it is very long."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} … {len(text) - LONGEST:,} characters … {text[-LONGEST // 2 :]}"
