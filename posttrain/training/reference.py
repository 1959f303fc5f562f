"""The reference's log-probabilities of every pair: computed once, stored, and used by every DPO run that follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.tokenise import Tokenised, tokenise_pairs
from posttrain.config import Lengths, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.errors import UserError
from posttrain.forward.logprobs import PairLogps, score_pairs
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.models.precision import uses_bf16

IDS = pa.list_(pa.int32())
TOKENS = pa.schema([("id", pa.string()), ("prompt_ids", IDS), ("chosen_ids", IDS), ("rejected_ids", IDS)])


@dataclass(frozen=True)
class ReferenceLogps:
    """Log-probabilities of every pair under one frozen policy."""

    table: pa.Table
    """One row a pair: split, id, prompt_ids, chosen_ids, rejected_ids (the tokens that were scored), ref_chosen_logps and
    ref_rejected_logps (float32, nats, summed over completion tokens)."""
    key: str
    """sha256 of what the figures depend on: weights, tokens, template, precision."""
    checkpoint: str
    """Digest of the checkpoint that was scored."""
    lengths: Lengths
    """How the tokens were cut."""
    cut: dict[str, dict[str, int]]
    """By split: how many pairs were cut or left out, and why."""

    def save(self, folder: Path) -> None:
        """Writes the table and its key into a folder."""
        pq.write_table(self.table, folder / "reference.parquet")
        about = {
            "key": self.key, "checkpoint": self.checkpoint, "lengths": self.lengths.model_dump(), "cut": self.cut
        }  # fmt: skip
        (folder / "reference.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ReferenceLogps:
        """What `save` wrote."""
        about = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        lengths = Lengths(**about.pop("lengths"))
        return cls(pq.read_table(folder / "reference.parquet"), lengths=lengths, **about)

    def rows(self, split: str) -> Dataset:
        """The tokenised pairs of a split with their figures, as TRL reads them."""
        return Dataset(self.table.filter(pc.equal(self.table["split"], split)).drop_columns("split"))

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
        scored = self.table.take(pa.array([position[row_id] for row_id in ids], pa.int64()))  # typed: it may be empty
        return PairLogps(
            *(scored[name].to_numpy() for name in ("ref_chosen_logps", "ref_rejected_logps")),
            *(pc.list_value_length(scored[name]).to_numpy() for name in ("chosen_ids", "rejected_ids")),
        )


def score_reference(
    preferences: Preferences,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    lengths: Lengths,
    tokens_per_batch: int,
    find: Callable[[str], ReferenceLogps | None] = lambda key: None,
) -> ReferenceLogps:
    """Log-probabilities of every pair of every split under the SFT checkpoint.

    Args:
        find: what was stored under a key before, by whatever run; then nothing is scored.
    """
    chat = load_chat(base, model, sft_checkpoint)
    tokenised = {
        split: tokenise_pairs(chat, rows, lengths.max_length, lengths.max_prompt_length)
        for split, rows in preferences.splits().items()
    }
    key = _key(sft_checkpoint, tokenised, chat.template, uses_bf16(model))
    if (stored := find(key)) is not None:
        print(f"Reference: taken from an earlier run (same weights, tokens, template and precision: {key[:16]})")
        return stored
    policy = load_model(base, model, sft_checkpoint)
    tables = []
    for split, tokens in tokenised.items():
        scored = score_pairs(policy, tokens.rows, model, tokens_per_batch, f"reference, {split}")
        columns = {"ref_chosen_logps": scored.chosen_logps, "ref_rejected_logps": scored.rejected_logps}
        table = tokens.rows.data.table.cast(TOKENS)
        for name, values in {"split": [split] * len(tokens.rows), **columns}.items():
            table = table.append_column(name, pa.array(values, pa.string() if name == "split" else pa.float32()))
        tables.append(table)
    cut = {split: tokens.counts for split, tokens in tokenised.items()}
    return ReferenceLogps(pa.concat_tables(tables), key, sft_checkpoint.digest, lengths, cut)


def _key(checkpoint: Checkpoint, tokenised: dict[str, Tokenised], template: str, bf16: bool) -> str:
    digest = hashlib.sha256(f"{checkpoint.digest} {template} {'bf16' if bf16 else 'fp32'}\n".encode())
    for split, tokens in tokenised.items():
        digest.update(f"{split}\n".encode())
        for row in tokens.rows:
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()
