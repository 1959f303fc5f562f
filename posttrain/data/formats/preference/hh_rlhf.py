"""Layout of Anthropic's HH-RLHF: transcripts of the form `\\n\\nHuman: ...\\n\\nAssistant: ...`.

Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf. Copies with the prompt in a separate column are
supported too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, split_off_shared_prompt
from posttrain.data.formats.turns import as_text
from posttrain.data.rows import Turn

COLUMNS = REQUIRED_COLUMNS["hh_rlhf"]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    starts = (row.get("prompt") or row.get("chosen") for row in rows)
    return columns.issuperset(COLUMNS) and any(isinstance(s, str) and s.startswith("\n\nHuman:") for s in starts)


def parse(row: Values) -> Pair:
    """Return the pair in a row's two transcripts, without white space around turns."""
    prompt = as_text(row.get("prompt") or "")
    chosen, rejected = (as_text(row.get(name)) for name in COLUMNS)
    if not chosen.strip() or not rejected.strip():
        raise Unusable("empty")
    return split_off_shared_prompt(_turns(prompt + chosen), _turns(prompt + rejected))


def _turns(transcript: str) -> list[Turn]:
    before, *rest = _SPEAKER.split(transcript)
    if before.strip() or not rest:
        raise Unusable("unparsable")
    return [
        {"role": _ROLES[speaker], "content": text.strip()} for speaker, text in zip(rest[::2], rest[1::2], strict=True)
    ]
