"""Log-probabilities of pairs under the reference: computed once a pair, stored, and used by every DPO training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.tokenise import PAIR_TOKENS
from posttrain.chat.tokens import PairTokens, check_chat
from posttrain.config import Lengths, ModelSection, Passes
from posttrain.errors import UserError
from posttrain.forward.logprobs import PairLogps
from posttrain.forward.ranks import LoadedBy, on_ranks
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat
from posttrain.models.precision import PRECISIONS, compute_dtype
from posttrain.training.order import epoch_order

LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
REMEDY = "score the reference again with the tokens that are used now"


@dataclass(frozen=True)
class ReferencePolicy:
    """The frozen policy that DPO is measured against, and how it is loaded."""

    checkpoint: Checkpoint
    base: Base
    model: ModelSection
    processes: int | Literal["auto"] = "auto"
    """Number of processes that score; auto: one per GPU, or one on a CPU."""


@dataclass(frozen=True)
class TrainedOn:
    """The DPO trainings that will use a reference. Of the training pairs, only those that they read are scored."""

    passes: Sequence[Passes]
    """The length of each training."""
    seed: int
    """Seed of the order in which they read the pairs."""

    def positions(self, n_pairs: int) -> list[int]:
        """Return the positions of the training pairs that are read, in ascending order."""
        n_read = max((passes.n_read(n_pairs) for passes in self.passes), default=0)
        return sorted(epoch_order(n_pairs, self.seed)[:n_read])


@dataclass(frozen=True)
class ReferenceLogps:
    """Log-probabilities of pairs under one frozen policy, with the tokens that they were computed on."""

    table: pa.Table
    """One row a pair: split, id, prompt_ids, chosen_ids, rejected_ids, and ref_chosen_logps and ref_rejected_logps
    (float32, nats, summed over completion tokens; null for training pairs that were not scored)."""
    key: str
    """sha256 of what the log-probabilities depend on: weights, tokens, lengths, template, precision. It does not depend on which
    training pairs were scored."""
    policy: str
    """sha256 of weights, template and precision. A pair with the same tokens has the same log-probabilities."""
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
            "key": self.key, "policy": self.policy, "checkpoint": self.checkpoint, "lengths": self.lengths.model_dump(),
            "cut": self.cut,
        }  # fmt: skip
        (folder / "reference.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ReferenceLogps:
        """Return what `save` wrote."""
        about = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        lengths = Lengths(**about.pop("lengths"))
        return cls(pq.read_table(folder / "reference.parquet"), lengths=lengths, **about)

    def rows(self, split: str) -> Dataset:
        """Return the tokenised pairs of a split with their log-probabilities, as TRL reads them.

        Pairs that were not scored have NaN: the data loader reads one batch ahead of the last step.
        """
        table = self.table.filter(pc.equal(self.table["split"], split)).drop_columns("split")
        for name in LOGPS:
            table = table.set_column(table.column_names.index(name), name, pc.fill_null(table[name], float("nan")))
        # Without a fingerprint, `datasets` copies and hashes all tokens to make one.
        fingerprint = hashlib.sha256(f"{self.key} {split}".encode()).hexdigest()[:16]
        return Dataset(table, fingerprint=fingerprint)

    def check_read(self, training: TrainedOn) -> None:
        """Check that every pair that a training reads was scored.

        Raises:
            UserError: with the number of pairs that were not.
        """
        train = self.table.filter(pc.equal(self.table["split"], "train"))
        read = train.take(pa.array(training.positions(len(train)), pa.int64()))
        if missing := read[LOGPS[0]].null_count:
            raise UserError(
                f"{missing} of the {len(read)} pairs that this training reads have no reference log-probabilities, because the "
                "reference was scored for a shorter training or another seed: score the reference again with these settings"
            )

    @property
    def n_scored(self) -> int:
        """Return the number of pairs that have log-probabilities."""
        return len(self.table) - int(self.table[LOGPS[0]].null_count)

    def of(self, rows: Dataset, lengths: Lengths) -> PairLogps:
        """Return the stored log-probabilities of tokenised pairs, in their order.

        Args:
            rows: `id, prompt_ids, chosen_ids, rejected_ids`.
            lengths: how the rows were cut.

        Raises:
            UserError: the reference was scored with other lengths or on other tokens, or lacks a pair.
        """
        self.check_lengths(lengths)
        is_scored = self.table[LOGPS[0]].is_valid().to_pylist()
        position = {row_id: i for i, row_id in enumerate(self.table["id"].to_pylist()) if is_scored[i]}
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
    trained_on: TrainedOn | None = None,
    find: Callable[[str], Iterable[ReferenceLogps]] = lambda policy: (),
) -> ReferenceLogps:
    """Return the log-probabilities of all validation and test pairs, and of the training pairs that are needed.

    A pair that an earlier run scored with the same weights, template and precision is not scored again.

    Args:
        trained_on: the trainings that will use them; None: score all training pairs.
        find: returns what earlier runs stored for a `ReferenceLogps.policy`, the newest first.

    Raises:
        UserError: the pairs were tokenised for another tokenizer or template.
    """
    chat = load_chat(policy.base, policy.model, policy.checkpoint)
    check_chat(tokens, chat, "the SFT checkpoint")
    precision = PRECISIONS[compute_dtype(policy.model)]
    about = hashlib.sha256(f"{policy.checkpoint.digest} {chat.template} {precision}".encode()).hexdigest()
    key = hashlib.sha256(f"{about} {tokens.digest}".encode()).hexdigest()
    table = pa.concat_tables(
        part.append_column("split", pa.array([split] * len(part), pa.string())) for split, part in tokens.tables.items()
    )
    digests = _digests(table)
    needed = _needed(table, trained_on)
    known = _stored(find(about), {digests[i] for i in needed})
    new = [i for i in needed if digests[i] not in known]
    if len(new) < len(needed):
        print(
            f"Reference: {len(needed) - len(new)} of {len(needed)} pairs are taken from earlier runs (same weights, tokens, "
            "template and precision)"
        )
    if new:
        scored = _score(table.take(pa.array(new, pa.int64())), policy, tokens_per_batch, key)
        known |= dict(zip([digests[i] for i in new], scored, strict=True))
    wanted = set(needed)
    logps = [known[digest] if i in wanted else (None, None) for i, digest in enumerate(digests)]
    for column, name in enumerate(LOGPS):
        table = table.append_column(name, pa.array([pair[column] for pair in logps], pa.float32()))
    return ReferenceLogps(table, key, about, policy.checkpoint.digest, tokens.lengths, tokens.cut)


def _score(pairs: pa.Table, policy: ReferencePolicy, tokens_per_batch: int, key: str) -> Iterator[tuple[float, float]]:
    """Yield the log-probabilities of pairs, which are in the order of their splits."""
    with on_ranks(LoadedBy(policy.base, policy.model, policy.checkpoint, policy.processes)) as ranks:
        for split in pc.unique(pairs["split"]).to_pylist():
            part = pairs.filter(pc.equal(pairs["split"], split))
            # Without a fingerprint, `datasets` copies and hashes all tokens to make one.
            rows = Dataset(part, fingerprint=hashlib.sha256(f"{key} {split} {len(part)}".encode()).hexdigest()[:16])
            found = ranks.score(rows, tokens_per_batch, f"reference, {split}")
            yield from zip(found.chosen_logps.tolist(), found.rejected_logps.tolist(), strict=True)


def _needed(table: pa.Table, trained_on: TrainedOn | None) -> list[int]:
    """Return the positions of the pairs that are scored."""
    if trained_on is None:
        return list(range(len(table)))
    is_train = np.array([split == "train" for split in table["split"].to_pylist()], dtype=bool)
    train = np.flatnonzero(is_train)
    read = train[trained_on.positions(len(train))]
    needed: list[int] = np.sort(np.concatenate([read, np.flatnonzero(~is_train)])).tolist()
    return needed


def _stored(earlier: Iterable[ReferenceLogps], wanted: set[bytes]) -> dict[bytes, tuple[float, float]]:
    """Return the log-probabilities of pairs by their digests, as far as earlier references have them."""
    found: dict[bytes, tuple[float, float]] = {}
    for reference in earlier:
        scored = reference.table.filter(reference.table[LOGPS[0]].is_valid())
        pairs = zip(_digests(scored), *(scored[name].to_pylist() for name in LOGPS), strict=True)
        found |= {digest: (chosen, rejected) for digest, chosen, rejected in pairs if digest in wanted - found.keys()}
        if len(found) == len(wanted):
            break
    return found


def _digests(table: pa.Table) -> list[bytes]:
    """Return sha256 of the token ids of each pair."""
    parts = []
    for name in PAIR_TOKENS.names[1:]:
        ids = pc.list_flatten(table[name]).to_numpy().astype("<i4")
        ends = np.cumsum(pc.list_value_length(table[name]).to_numpy())
        parts.append(np.split(ids, ends)[:-1])
    return [
        hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part.tobytes() for part in pair)).digest()
        for pair in zip(*parts, strict=True)
    ]
