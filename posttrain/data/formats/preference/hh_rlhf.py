"""Layout of Anthropic's HH-RLHF: transcripts of the form `\\n\\nHuman: ...\\n\\nAssistant: ...`.

Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf. Copies with the prompt in a separate column are
supported too.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, split_off_shared_prompt
from posttrain.data.formats.turns import as_text, transcript_turns

COLUMNS = REQUIRED_COLUMNS["hh_rlhf"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and any(
        isinstance(text, str) and text.startswith("\n\nHuman:")
        for row in rows
        for text in [row.get("prompt") or row.get("chosen")]
    )


def parse(row: Values) -> Pair:
    """Return the pair in a row's two transcripts, without white space around turns."""
    prompt = as_text(row.get("prompt") or "")
    chosen, rejected = (as_text(row.get(name)) for name in COLUMNS)
    if not chosen.strip() or not rejected.strip():
        raise Unusable("empty")
    return split_off_shared_prompt(
        transcript_turns(_joined(prompt, chosen)), transcript_turns(_joined(prompt, rejected))
    )


def _joined(prompt: str, response: str) -> str:
    """Return a prompt and a response as one transcript. The response may repeat the prompt or name its speaker."""
    start = response.lstrip()
    if start.startswith("Human:"):
        if prompt.strip() not in response:
            raise Unusable("prompt_differs")
        return response
    if not prompt:
        return response
    if start.startswith("Assistant:"):
        return f"{prompt.rstrip().removesuffix('Assistant:').rstrip()}\n\n{start}"
    return (
        prompt + response
        if prompt.rfind("\n\nAssistant:") > prompt.rfind("\n\nHuman:")
        else f"{prompt}\n\nAssistant:{response}"
    )
