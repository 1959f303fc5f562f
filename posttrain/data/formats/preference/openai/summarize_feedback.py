"""Layout of OpenAI's comparisons of summaries: a post or an article, two summaries, and the index of the better one.

Source: Stiennon et al. 2020, openai/summarize_from_feedback, `comparisons`: `choice` is 0 or 1. The prompt is that of the paper,
table 8: subreddit, title and post, then `TL;DR:`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, answer, as_number
from posttrain.data.formats.turns import as_text
from posttrain.data.rows import Turn

COLUMNS = REQUIRED_COLUMNS["summarize_feedback"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row."""
    info, summaries = row.get("info"), row.get("summaries")
    if not isinstance(info, Mapping) or not isinstance(summaries, list):
        raise Unusable("not_text")
    if len(summaries) != 2 or not all(isinstance(summary, Mapping) for summary in summaries):
        raise Unusable("not_text")
    choice = as_number(row.get("choice"))
    if choice not in (0, 1):
        raise Unusable("unknown_label")
    better = int(choice)
    texts = [answer(as_text(summary.get("text")).strip()) for summary in summaries]
    return Pair(_prompt(info), texts[better], texts[1 - better])


def _prompt(info: Mapping[str, object]) -> list[Turn]:
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("ARTICLE: ", "article")]
    if not info.get("post") and not info.get("article"):
        raise Unusable("empty")
    texts = [f"{head}{as_text(info[name])}" for head, name in parts if info.get(name)]
    return [{"role": "user", "content": "\n\n".join([*texts, "TL;DR:"])}]
