"""Reading further sets of pairs to judge a model by."""

from __future__ import annotations

import os
from pathlib import Path

from posttrain.config import DataSection, Source
from posttrain.data.loader import load_pairs
from posttrain.data.pair_sets import PairSet, PairSets
from posttrain.data.sources.files import is_local
from posttrain.data.splits import prompt_key
from posttrain.data.stored import Preferences
from posttrain.errors import UserError


def load_pair_sets(sources: list[Source], preferences: Preferences, data: DataSection) -> PairSets:
    """Load the pairs of each source, without those whose prompt is in the training data.

    Args:
        sources: the sets, as in `evaluation.sets`.
        preferences: their training and validation prompts are removed from the sets.
        data: its `max_chars` and `max_drop_share` apply here too.

    Raises:
        UserError: a source is missing, has no known layout or no pairs left, or two sets have the same name.
    """
    trained_on = {
        prompt_key(prompt) for split in (preferences.train, preferences.validation) for prompt in split["prompt"]
    }
    sets: dict[str, PairSet] = {}
    for source in sources:
        rows, report = load_pairs(source, trained_on, data)
        name = set_name(source)
        if name in sets:
            raise UserError(
                f"evaluation.sets: two sets have the name {name!r}: rename a file or folder, or use one glob for both"
            )
        sets[name] = PairSet(rows, report.digest, report.dropped)
    return PairSets(sets)


def set_name(source: Source) -> str:
    """Return the name of a set: the last two parts of its path without suffixes, and the subset of a Hub dataset.

    Examples: `llmbar/Natural` for `../data/llmbar/Natural.jsonl.gz`, `org/name/subset` for a subset on the Hub.
    """
    path = os.path.abspath(source.path) if is_local(source.location) else source.path
    *folders, last = (part for part in Path(path).parts if part not in ("/", "..", "."))
    parts = [*folders[-1:], last.split(".")[0] or last]
    return "/".join([*parts, *(part for part in (source.subset, source.data_dir) if part)])
