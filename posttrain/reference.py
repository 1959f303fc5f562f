"""The reference's log-probabilities of every pair: computed once, stored, and used by every DPO run that follows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from posttrain.chat import Tokenised, tokenise_pairs
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import ModelSection
from posttrain.data.preferences import Preferences
from posttrain.errors import UserError
from posttrain.logprobs import PairLogps, score_pairs
from posttrain.model import load_chat, load_model, uses_bf16


class Lengths(BaseModel):
    """How many tokens of a pair are used: part of what a reference was scored on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int
    max_prompt_length: int


@dataclass(frozen=True)
class ReferenceLogps:
    """Log-probabilities of every pair under one frozen policy."""

    table: pa.Table
    """id, ref_chosen_logps, ref_rejected_logps (float32, nats, summed over completion tokens), n_chosen_tokens,
    n_rejected_tokens; one row a pair."""
    key: str
    """sha256 of what the figures depend on: weights, tokens, template, precision."""
    checkpoint: str
    """Digest of the checkpoint that was scored."""
    cut: dict[str, dict[str, int]]
    """By split: how many pairs were cut or left out, and why."""

    def save(self, folder: Path) -> None:
        """Writes the table and its key into a folder."""
        pq.write_table(self.table, folder / "reference.parquet")
        about = {"key": self.key, "checkpoint": self.checkpoint, "cut": self.cut}
        (folder / "reference.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ReferenceLogps:
        """What `save` wrote."""
        about = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        return cls(pq.read_table(folder / "reference.parquet"), **about)

    def of(self, rows: Dataset) -> PairLogps:
        """The stored figures of tokenised rows, in their order.

        Raises:
            UserError: a row was never scored.
        """
        position = {row_id: i for i, row_id in enumerate(self.table["id"].to_pylist())}
        ids = list(rows["id"])
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise UserError(
                f"{len(missing)} pairs (first: {missing[0]}) have no reference log-probabilities: they were scored on other "
                "data or other lengths; score the reference again"
            )
        scored = self.table.take(
            pa.array([position[row_id] for row_id in ids], pa.int64())
        )  # typed, as it may be empty
        names = ("ref_chosen_logps", "ref_rejected_logps", "n_chosen_tokens", "n_rejected_tokens")
        return PairLogps(*(scored[name].to_numpy() for name in names))

    def attach(self, rows: Dataset) -> Dataset:
        """Tokenised rows with the columns that TRL reads its reference from."""
        stored = self.of(rows)
        return rows.add_column("ref_chosen_logps", stored.chosen_logps).add_column(
            "ref_rejected_logps", stored.rejected_logps
        )


def score_reference(
    preferences: Preferences,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    lengths: Lengths,
    tokens_per_batch: int,
) -> ReferenceLogps:
    """Log-probabilities of every pair of every split under the SFT checkpoint."""
    chat = load_chat(base, model, sft_checkpoint)
    policy = load_model(base, model, sft_checkpoint)
    tables, tokenised = [], {}
    for split, rows in preferences.splits().items():
        tokenised[split] = tokenise_pairs(chat, rows, lengths.max_length, lengths.max_prompt_length)
        scored = score_pairs(policy, tokenised[split].rows, model, tokens_per_batch, f"reference, {split}")
        tables.append(_table(tokenised[split].rows, scored))
    key = _key(sft_checkpoint, tokenised, chat.template, uses_bf16(model))
    cut = {split: tokens.counts for split, tokens in tokenised.items()}
    return ReferenceLogps(pa.concat_tables(tables), key, sft_checkpoint.digest, cut)


def _table(rows: Dataset, scored: PairLogps) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(list(rows["id"]), pa.string()),
            "ref_chosen_logps": pa.array(scored.chosen_logps),
            "ref_rejected_logps": pa.array(scored.rejected_logps),
            "n_chosen_tokens": pa.array(scored.n_chosen_tokens),
            "n_rejected_tokens": pa.array(scored.n_rejected_tokens),
        }
    )


def _key(checkpoint: Checkpoint, tokenised: dict[str, Tokenised], template: str, bf16: bool) -> str:
    digest = hashlib.sha256(f"{checkpoint.digest} {template} {'bf16' if bf16 else 'fp32'}\n".encode())
    for tokens in tokenised.values():
        for row in tokens.rows:
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()
