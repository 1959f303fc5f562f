"""Log-probabilities of every pair under the reference: computed once, stored, and used by every DPO training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.tokenise import PAIR_TOKENS
from posttrain.chat.tokens import PairTokens, check_chat
from posttrain.config import Lengths, ModelSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import PairLogps, score_pairs
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.models.precision import uses_bf16

LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
REMEDY = "score the reference again with the tokens that are used now"


@dataclass(frozen=True)
class ReferencePolicy:
    """The frozen policy that DPO is measured against, and how it is loaded."""

    checkpoint: Checkpoint
    base: Base
    model: ModelSection


@dataclass(frozen=True)
class ReferenceLogps:
    """Log-probabilities of every pair under one frozen policy, with the tokens that they were computed on."""

    table: pa.Table
    """One row a pair: split, id, prompt_ids, chosen_ids, rejected_ids, and ref_chosen_logps and ref_rejected_logps
    (float32, nats, summed over completion tokens)."""
    key: str
    """sha256 of what the log-probabilities depend on: weights, tokens, lengths, template, precision."""
    checkpoint: str
    """Digest of the checkpoint that was scored."""
    lengths: Lengths
    """How the tokens were cut."""
    cut: dict[str, dict[str, int]]
    """By split: how many pairs were cut or left out, and why."""

    def save(self, folder: Path) -> None:
        """Write the table and what it was computed from into a folder."""
        pq.write_table(self.table, folder / "reference.parquet")
        about = {
            "key": self.key, "checkpoint": self.checkpoint, "lengths": self.lengths.model_dump(), "cut": self.cut
        }  # fmt: skip
        (folder / "reference.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ReferenceLogps:
        """Return what `save` wrote."""
        about = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        lengths = Lengths(**about.pop("lengths"))
        return cls(pq.read_table(folder / "reference.parquet"), lengths=lengths, **about)

    def rows(self, split: str) -> Dataset:
        """Return the tokenised pairs of a split with their log-probabilities, as TRL reads them."""
        # Without a fingerprint, `datasets` copies and hashes all tokens to make one.
        fingerprint = hashlib.sha256(f"{self.key} {split}".encode()).hexdigest()[:16]
        return Dataset(
            self.table.filter(pc.equal(self.table["split"], split)).drop_columns("split"), fingerprint=fingerprint
        )

    def of(self, rows: Dataset, lengths: Lengths) -> PairLogps:
        """Return the stored log-probabilities of tokenised pairs, in their order.

        Args:
            rows: `id, prompt_ids, chosen_ids, rejected_ids`.
            lengths: how the rows were cut.

        Raises:
            UserError: the reference was scored with other lengths or on other tokens, or lacks a pair.
        """
        self.check_lengths(lengths)
        position = {row_id: i for i, row_id in enumerate(self.table["id"].to_pylist())}
        wanted: pa.Table = rows.with_format("arrow")[:]
        ids = wanted["id"].to_pylist()
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(ids)} pairs (first: {missing[0]}) have no reference log-probabilities, because the "
                f"reference was scored on other data: {REMEDY}"
            )
        scored = self.table.take(pa.array([position[row_id] for row_id in ids], pa.int64()))  # typed: it may be empty
        self._check_tokens(scored, wanted)
        return PairLogps(
            *(scored[name].to_numpy() for name in LOGPS),
            *(pc.list_value_length(scored[name]).to_numpy() for name in ("chosen_ids", "rejected_ids")),
        )

    def check_lengths(self, lengths: Lengths) -> None:
        """Check that the reference was scored on tokens that were cut to these lengths.

        Raises:
            UserError: with both lengths.
        """
        if self.lengths != lengths:
            raise UserError(
                f"the reference was scored on tokens cut to max_length {self.lengths.max_length} and max_prompt_length "
                f"{self.lengths.max_prompt_length}, but max_length {lengths.max_length} and max_prompt_length "
                f"{lengths.max_prompt_length} are set now, so its log-probabilities belong to other tokens: {REMEDY}, or set "
                "dpo.max_length and dpo.max_prompt_length back"
            )

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check that this checkpoint was scored.

        Raises:
            UserError: with both digests.
        """
        if self.checkpoint != checkpoint.digest:
            raise UserError(
                f"the reference was scored with checkpoint {self.checkpoint[:16]}, not with {checkpoint.digest[:16]}, so its "
                "log-probabilities are those of another model: score the reference again with this checkpoint"
            )

    @staticmethod
    def _check_tokens(scored: pa.Table, wanted: pa.Table) -> None:
        for name in PAIR_TOKENS.names[1:]:
            if scored[name].equals(wanted[name].cast(PAIR_TOKENS.field(name).type)):
                continue
            rows = zip(scored["id"].to_pylist(), scored[name].to_pylist(), wanted[name].to_pylist(), strict=True)
            differing = [row_id for row_id, ours, theirs in rows if ours != theirs]
            raise UserError(
                f"{len(differing)} of {len(scored)} pairs (first: {differing[0]}) have other {name} than the reference was "
                "scored on: the texts, the tokenizer or the chat template changed, so its log-probabilities belong to other "
                f"tokens: {REMEDY}"
            )


def score_reference(
    tokens: PairTokens,
    policy: ReferencePolicy,
    tokens_per_batch: int,
    find: Callable[[str], ReferenceLogps | None] = lambda key: None,
) -> ReferenceLogps:
    """Return the log-probabilities of every pair of every split under the reference.

    Args:
        find: returns what an earlier run stored under a key, or None. If it returns log-probabilities, nothing is scored.

    Raises:
        UserError: the pairs were tokenised for another tokenizer or template.
    """
    chat = load_chat(policy.base, policy.model, policy.checkpoint)
    check_chat(tokens, chat, "the SFT checkpoint")
    precision = "bf16" if uses_bf16(policy.model) else "fp32"
    about = f"{policy.checkpoint.digest} {chat.template} {precision} {tokens.digest}"
    key = hashlib.sha256(about.encode()).hexdigest()
    if (stored := find(key)) is not None:
        print(f"Reference: taken from an earlier run (same weights, tokens, template and precision: {key[:16]})")
        return stored
    model = load_model(policy.base, policy.model, policy.checkpoint)
    tables = []
    for split, table in tokens.tables.items():
        scored = score_pairs(model, tokens.rows(split), policy.model, tokens_per_batch, f"reference, {split}")
        for name, values in zip(LOGPS, (scored.chosen_logps, scored.rejected_logps), strict=True):
            table = table.append_column(name, pa.array(values.astype(np.float32), pa.float32()))
        tables.append(table.append_column("split", pa.array([split] * len(table), pa.string())))
    return ReferenceLogps(pa.concat_tables(tables), key, policy.checkpoint.digest, tokens.lengths, tokens.cut)
