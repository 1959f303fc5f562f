"""Further sets of pairs to judge a model by, such as LLMBar or PandaLM: read whole, never trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.config import DataSection, Source
from posttrain.data.loader import load_pairs
from posttrain.data.preferences import Preferences
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError


@dataclass(frozen=True)
class PairSet:
    """The usable pairs of one source, and how many rows were dropped and why."""

    rows: Dataset
    digest: str
    dropped: dict[str, int]


@dataclass(frozen=True)
class PairSets:
    """Sets of pairs by name."""

    sets: dict[str, PairSet]

    def save(self, folder: Path) -> None:
        """Writes `sets.json`, and a Parquet file a set."""
        about = []
        for i, (name, found) in enumerate(self.sets.items()):
            pq.write_table(found.rows.with_format("arrow")[:], folder / f"{i}.parquet")
            about.append({"name": name, "digest": found.digest, "dropped": found.dropped})
        (folder / "sets.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PairSets:
        """What `save` wrote."""
        about = json.loads((folder / "sets.json").read_text(encoding="utf-8"))
        return cls(
            {
                entry["name"]: PairSet(
                    Dataset(pq.read_table(folder / f"{i}.parquet")), entry["digest"], entry["dropped"]
                )
                for i, entry in enumerate(about)
            }
        )


def load_pair_sets(sources: list[Source], preferences: Preferences, data: DataSection) -> PairSets:
    """The pairs of each source, less those whose prompt is trained on.

    Args:
        preferences: whose training prompts would flatter a model.
        data: its `max_chars` and `max_drop_share` hold here too.

    Raises:
        UserError: a source is missing or has no known layout, nothing of it is left, or two have the same name.
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
                f"evaluation.sets: two sets are called {name!r}, so their figures could not be told apart: rename a file or "
                "folder, or name both in one glob"
            )
        sets[name] = PairSet(rows, report.digest, report.dropped)
    return PairSets(sets)


def set_name(source: Source) -> str:
    """What a set is called: the last two parts of its path without suffixes, and its part of a Hub dataset.

    Examples: `llmbar/Natural` for `../data/llmbar/Natural.jsonl.gz`, `org/name/subset` for a subset on the Hub.
    """
    *folders, last = (part for part in Path(source.path).parts if part not in ("/", "..", "."))
    parts = [*folders[-1:], last.split(".")[0] or last]
    return "/".join([*parts, *(part for part in (source.subset, source.data_dir) if part)])
