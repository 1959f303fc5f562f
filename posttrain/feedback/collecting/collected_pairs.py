"""The result of a collection: preference pairs with their origin, and a report that accounts for every prompt and answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from posttrain.config.layouts import PROVENANCE
from posttrain.data.rows import canonical
from posttrain.data.spool import TURNS

FILE, REPORT = "collected.parquet", "report.json"
ORIGIN = pa.struct(
    [
        *(
            (name, pa.string())
            for name in ("id", "chosen_model", "rejected_model", "chosen_digest", "rejected_digest", "judge")
        ),
        *((name, pa.int64()) for name in ("chosen_seed", "rejected_seed")),
        *((name, pa.string()) for name in ("collected_at", "prompt_source")),
    ]
)
"""Where a pair comes from: its id, the models with their digests, the judge, the seeds, the time, and the source of the prompt."""
COLLECTED_SCHEMA = pa.schema(
    [
        *(("prompt", TURNS), ("chosen", TURNS), ("rejected", TURNS), ("tools", pa.string())),
        *(("score_chosen", pa.float64()), ("score_rejected", pa.float64()), (PROVENANCE, ORIGIN)),
    ]
)
"""A collected pair, in the layout `scored_pair`."""


class AnswerCounts(BaseModel):
    """What one model answered."""

    model_config = ConfigDict(frozen=True)

    n_answers: int
    n_unfinished: int
    """Answers without a stop token. They are not used: DPO would train on an end that the model did not write."""
    n_empty: int
    n_chosen: int
    """Number of pairs with an answer of this model as chosen."""
    mean_score: float | None
    """Over all judged answers."""
    mean_tokens: float | None


class CollectionReport(BaseModel):
    """Every prompt has pairs or a reason for having none: `n_prompts == n_prompts_with_pairs + sum(without_pairs)`."""

    model_config = ConfigDict(frozen=True)

    n_prompts: int
    n_prompts_with_pairs: int
    without_pairs: dict[str, int]
    """Number of prompts without a pair, by reason."""
    n_pairs: int
    judge: str
    n_failures: int
    """Questions that the judge did not answer."""
    failures: dict[str, int]
    """By reason."""
    models: dict[str, AnswerCounts]
    prompts_dropped: dict[str, int]
    """Rows of the prompt sources that were not used, by reason, such as `held_out`."""
    mean_margin: float | None
    chosen_chars: float | None
    """Mean number of characters."""
    rejected_chars: float | None
    longer_chosen: float | None
    """Share of pairs whose chosen answer is the longer one."""
    filters: dict[str, int] = {}
    """Passages of documents by what became of them."""


@dataclass(frozen=True)
class CollectedPreferences:
    """Collected pairs (`COLLECTED_SCHEMA`) and their report."""

    table: pa.Table
    report: CollectionReport

    @cached_property
    def digest(self) -> str:
        """sha256 of all rows in order."""
        digest = hashlib.sha256()
        for row in self.table.to_pylist():
            digest.update(canonical(row) + b"\n")
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `collected.parquet` and `report.json`."""
        pq.write_table(self.table, folder / FILE)
        (folder / REPORT).write_text(self.report.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CollectedPreferences:
        """Return what `save` wrote."""
        report = CollectionReport.model_validate_json((folder / REPORT).read_text(encoding="utf-8"))
        return cls(pq.read_table(folder / FILE), report)


def pair_row(row: dict[str, Any], answers: tuple[str, str], scores: tuple[float, float], origin: dict[str, Any]) -> Any:
    """Return a row of `COLLECTED_SCHEMA`.

    Args:
        row: the prompt's row, with `prompt` and perhaps `tools`.
        answers: chosen and rejected.
        scores: of these.
        origin: the fields of `ORIGIN`, without the id.
    """
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in answers)
    content = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "tools": row.get("tools")}
    row_id = hashlib.sha256(canonical(content)).hexdigest()[:16]
    return {**content, "score_chosen": scores[0], "score_rejected": scores[1], PROVENANCE: {"id": row_id, **origin}}
