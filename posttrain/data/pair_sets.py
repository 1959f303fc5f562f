"""Further sets of pairs to judge a model by, such as LLMBar or PandaLM: never trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset


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
