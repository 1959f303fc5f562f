"""Additional evaluation sets of pairs, such as LLMBar or PandaLM. They are never used for training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset


@dataclass(frozen=True)
class PairSet:
    """The usable pairs of one source, and the number of dropped rows by reason."""

    rows: Dataset
    digest: str
    dropped: dict[str, int]


@dataclass(frozen=True)
class PairSets:
    """Evaluation sets by name."""

    sets: dict[str, PairSet]

    def save(self, folder: Path) -> None:
        """Write `sets.json` and one Parquet file per set."""
        about = []
        for i, (name, found) in enumerate(self.sets.items()):
            pq.write_table(found.rows.with_format("arrow")[:], folder / f"{i}.parquet")
            about.append({"name": name, "digest": found.digest, "dropped": found.dropped})
        (folder / "sets.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PairSets:
        """Load what `save` wrote."""
        about = json.loads((folder / "sets.json").read_text(encoding="utf-8"))
        return cls(
            {
                entry["name"]: PairSet(
                    Dataset(pq.read_table(folder / f"{i}.parquet")), entry["digest"], entry["dropped"]
                )
                for i, entry in enumerate(about)
            }
        )
