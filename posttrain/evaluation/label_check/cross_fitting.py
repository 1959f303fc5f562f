"""Cross-fitted margins: each training pair is scored by a DPO model that was trained on the pairs of other prompts."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.chat.tokens import PairTokens, SftTokens
from posttrain.config import ModelSection, RunConfig
from posttrain.data.loader import load_instructions, load_preferences
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.label_check.checked_labels import CheckedLabels
from posttrain.evaluation.label_check.noise import estimate_noise
from posttrain.forward.logprobs import score_pairs
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferenceLogps, ReferencePolicy, score_reference
from posttrain.training.sft import train_sft
from posttrain.training.trainer import TrainingJob

T = TypeVar("T")


@dataclass(frozen=True)
class CheckInputs:
    """What the labels of a run are checked with."""

    config: RunConfig
    base: Base
    tokens: PairTokens
    sft_tokens: SftTokens | None
    """None if there is an SFT checkpoint."""
    sft_checkpoint: Checkpoint | None = None
    """The model that `dpo.start` names."""
    n_folds: int = 3

    @property
    def model(self) -> ModelSection:
        """The settings that load the models."""
        return self.config.model

    @property
    def folds(self) -> np.ndarray:
        """The fold of each training pair, by a hash of its prompt: pairs of one prompt are in the same fold."""
        prompts = self.tokens.tables["train"]["prompt_ids"].to_pylist()
        keys = (hashlib.sha256(json.dumps(prompt).encode()).digest() for prompt in prompts)
        return np.array([int.from_bytes(key[:8]) % self.n_folds for key in keys], dtype=np.int64)

    @property
    def key(self) -> str:
        """sha256 of everything that the margins depend on, except the code."""
        about = {
            "base": [self.base.digest, self.base.template_digest],
            "model": self.model.without_paths(),
            "sft": self.sft_checkpoint.digest if self.sft_checkpoint else self.config.sft.model_dump(),
            "sft_tokens": self.sft_tokens.digest if self.sft_tokens else None,
            "dpo": self.config.dpo.model_dump(),
            "seed": self.config.seed,
            "tokens": self.tokens.digest,
            "n_folds": self.n_folds,
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def load_inputs(config: RunConfig, sft_checkpoint: Checkpoint | None, n_folds: int) -> tuple[Preferences, CheckInputs]:
    """Load and tokenise the data of a config as a run does.

    Args:
        sft_checkpoint: the model that `dpo.start` names; None: SFT is trained.

    Raises:
        UserError: the config trains no DPO, or its data cannot be used.
    """
    if config.finetuning_type == "sft":
        raise UserError("label-check trains DPO, but finetuning_type is sft: set it to both or dpo")
    preferences, _ = load_preferences(config.data)
    base = resolve_base(config.model)
    chat = load_chat(base, config.model, sft_checkpoint)
    source = config.sft.dataset if sft_checkpoint is None else None
    instructions = load_instructions(source, preferences, config.data)[0] if source else None
    sft_max_length = config.sft.max_length if sft_checkpoint is None else None
    tokens = tokenise_data(chat, preferences, instructions, TokeniseSettings(config.dpo.lengths, sft_max_length))
    return preferences, CheckInputs(config, base, tokens.pairs, tokens.sft, sft_checkpoint, n_folds)


def cost(inputs: CheckInputs) -> list[str]:
    """Return what the check will train, in words."""
    config, n_pairs = inputs.config, inputs.tokens.tables["train"].num_rows
    lines = []
    if inputs.sft_tokens is not None:
        n_rows = inputs.sft_tokens.tables["train"].num_rows
        lines.append(f"SFT on {n_rows:,} rows ({_n_steps(n_rows, config.sft)} steps)")
    n_train = round(n_pairs * (1 - 1 / inputs.n_folds))
    lines.append(f"DPO {inputs.n_folds} times on about {n_train:,} pairs ({_n_steps(n_pairs, config.dpo)} steps each)")
    lines.append(f"{n_pairs:,} pairs scored twice")
    return lines


def _n_steps(n_rows: int, section: object) -> int:
    max_steps, epochs, size = (getattr(section, name) for name in ("max_steps", "epochs", "effective_batch_size"))
    return int(max_steps or math.ceil(n_rows / size * epochs))


def check_labels(inputs: CheckInputs, folder: Path, confidence: float = 0.95) -> CheckedLabels:
    """Return the margin of each training pair by a model that was trained on the pairs of other prompts.

    The margin is that of DPO minus that of the SFT checkpoint, so that what SFT has memorised of a chosen response cancels.

    Args:
        folder: where finished folds are kept, in a folder of their own for each key. An interrupted check goes on with the
            next fold.

    Raises:
        UserError: a fold is empty, or a training failed.
    """
    folds, place = inputs.folds, folder / inputs.key[:32]
    for fold in range(inputs.n_folds):
        if not 0 < int((folds == fold).sum()) < len(folds):
            raise UserError(
                f"label-check: the training pairs have too few different prompts for {inputs.n_folds} folds: use fewer folds or "
                "more data"
            )
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"fold-{fold}.parquet" for fold in range(inputs.n_folds)]
    if not all(file.exists() for file in files):
        start = _Start(inputs, place)
        for fold, file in enumerate(files):
            if not file.exists():
                _write(start.margins_of(fold, folds == fold), file)
        start.delete()
    scored = pa.concat_tables(pq.read_table(file) for file in files)
    margins = scored["margin_nats"].to_numpy()
    noise = estimate_noise(margins, confidence)
    p_swapped = pa.nulls(len(margins), pa.float64()) if noise is None else pa.array(noise.p_swapped(margins))
    table = scored.append_column("p_swapped", p_swapped)
    return CheckedLabels(table.sort_by([("margin_nats", "ascending"), ("id", "ascending")]), noise)


class _Start:
    """The SFT checkpoint and its log-probabilities, from which every fold is trained."""

    def __init__(self, inputs: CheckInputs, place: Path) -> None:
        self._inputs, self._place = inputs, place
        self._sft = inputs.sft_checkpoint or _kept(
            place / "sft", lambda folder: self._train_sft(folder), Checkpoint.load
        )
        policy = ReferencePolicy(self._sft, inputs.base, inputs.model)
        tokens_per_batch = inputs.config.evaluation.tokens_per_batch
        # Validation pairs are scored too, as early stopping may need them; the test pairs are not.
        used = replace(inputs.tokens, tables={**inputs.tokens.tables, "test": inputs.tokens.tables["test"].slice(0, 0)})
        self._reference = _kept(
            place / "reference",
            lambda folder: _saved(score_reference(used, policy, tokens_per_batch), folder),
            ReferenceLogps.load,
        )

    def _train_sft(self, folder: Path) -> Checkpoint:
        tokens, config = self._inputs.sft_tokens, self._inputs.config
        assert tokens is not None
        return train_sft(tokens, config.sft, self._job(folder))

    def _job(self, folder: Path) -> TrainingJob:
        return TrainingJob(self._inputs.base, self._inputs.model, self._inputs.config.seed, folder)

    def margins_of(self, fold: int, inside: np.ndarray) -> pa.Table:
        """Train DPO on the pairs of the other folds, with as many steps as in a run, and return the margins of this one."""
        config, reference = self._inputs.config, self._reference
        n_steps = _n_steps(self._inputs.tokens.tables["train"].num_rows, config.dpo)
        print(f"label-check: fold {fold + 1} of {self._inputs.n_folds}")
        ids = pc.filter(self._inputs.tokens.tables["train"]["id"], pa.array(inside))
        held_out = pc.and_(pc.equal(reference.table["split"], "train"), pc.is_in(reference.table["id"], ids))
        key = hashlib.sha256(f"{reference.key} without fold {fold} of {self._inputs.n_folds}".encode()).hexdigest()
        others = replace(reference, table=reference.table.filter(pc.invert(held_out)), key=key)
        rows = Dataset(reference.table.filter(held_out).drop_columns("split"))
        folder = self._place / f"dpo-{fold}"
        shutil.rmtree(folder, ignore_errors=True)
        section = config.dpo.model_copy(update={"max_steps": n_steps})
        dpo = train_dpo(others, self._sft, section, self._job(folder))
        model = load_model(self._inputs.base, self._inputs.model, dpo, frozen=True)
        found = score_pairs(
            model, rows, self._inputs.model, config.evaluation.tokens_per_batch, f"fold {fold + 1}, pairs"
        )
        stored = reference.of(rows, reference.lengths)
        margins = (found.chosen_logps - stored.chosen_logps).astype(np.float64) - (
            found.rejected_logps - stored.rejected_logps
        )
        if not np.isfinite(margins).all():
            raise UserError("label-check: DPO diverged, so its margins are not finite: lower dpo.learning_rate")
        shutil.rmtree(folder)
        return pa.table({"id": list(rows["id"]), "fold": [fold] * len(rows), "margin_nats": margins})

    def delete(self) -> None:
        """Delete the checkpoint, which is not needed once all folds are scored."""
        for name in ("sft", "reference"):
            shutil.rmtree(self._place / name, ignore_errors=True)


def _saved(reference: ReferenceLogps, folder: Path) -> ReferenceLogps:
    folder.mkdir()
    reference.save(folder)
    return reference


def _kept(folder: Path, make: Callable[[Path], T], load: Callable[[Path], T]) -> T:
    """Return what an earlier attempt made in a folder, or make it. The folder has its name only when it is complete."""
    if folder.exists():
        return load(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(folder)
    return load(folder)


def _write(table: pa.Table, file: Path) -> None:
    partial = file.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.rename(file)
