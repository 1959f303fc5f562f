"""The rows of each optimizer step, shared among processes and micro-batches so that all have about as many tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from posttrain.config import TrainSection
from posttrain.forward.balance import balance
from posttrain.training.order import epoch_order
from posttrain.training.splitting import SplittingTrainer

S = TypeVar("S", bound=TrainSection)
ENOUGH = 0.9
"""Utilisation of the processes below which the advice is to use more rows per step."""


def row_tokens(rows: Dataset) -> np.ndarray:
    """Return the number of tokens of each row: of prompt and both responses of a pair, or of a whole SFT row."""
    table: pa.Table = rows.with_format("arrow")[:]
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if "prompt_ids" in table.column_names else ("input_ids",)
    n_tokens: np.ndarray = sum(pc.list_value_length(table[name]).to_numpy().astype(np.int64) for name in names)
    return n_tokens


def share(rows: Sequence[int], n_tokens: np.ndarray, n_parts: int) -> list[list[int]]:
    """Return the rows in parts with equally many rows and about as many tokens, the part with most tokens first.

    The number of rows must be a multiple of the number of parts.
    """
    costs = [int(n_tokens[row]) for row in rows]
    parts = balance(costs, n_parts, room=len(rows) // n_parts)
    return [[rows[i] for i in part] for part in sorted(parts, key=lambda part: -sum(costs[i] for i in part))]


@dataclass(frozen=True)
class StepBatches:
    """How the rows of each step are shared. A step has the same rows, whatever the number of processes."""

    n_tokens: np.ndarray
    """Of each row."""
    section: TrainSection
    """Settings of each process, with the rows and the number of its micro-batches."""
    seed: int

    @property
    def n_processes(self) -> int:
        """Return the number of processes that share a step."""
        return self.section.processes if isinstance(self.section.processes, int) else 1

    @property
    def rows_per_step(self) -> int:
        """Return the number of rows of a step, of all processes together."""
        return self.section.effective_batch_size * self.n_processes

    def steps(self, epoch: int) -> Iterator[list[list[list[int]]]]:
        """Yield the steps of an epoch: for each of its micro-batches, heaviest first, the rows of each process.

        If the rows of the last step cannot be shared evenly, the first rows of the epoch fill it up.
        """
        order = epoch_order(len(self.n_tokens), self.seed, epoch)
        for start in range(0, len(order), self.rows_per_step):
            rows = order[start : start + self.rows_per_step]
            n_micro = min(self.section.gradient_accumulation_steps, max(1, len(rows) // self.n_processes))
            n_parts = n_micro * self.n_processes
            rows += (order * n_parts)[: -len(rows) % n_parts]
            parts = share(rows, self.n_tokens, n_parts)
            # In turns, so that no process has the heaviest part of every micro-batch.
            turns = [parts[i : i + self.n_processes] for i in range(0, n_parts, self.n_processes)]
            yield [turn[::-1] if i % 2 else turn for i, turn in enumerate(turns)]

    def n_batches(self) -> int:
        """Return the number of micro-batches of each process in an epoch."""
        n_whole, rest = divmod(len(self.n_tokens), self.rows_per_step)
        n_micro = self.section.gradient_accumulation_steps
        return n_whole * n_micro + (min(n_micro, max(1, rest // self.n_processes)) if rest else 0)

    def utilisation(self) -> float:
        """Return the mean share of its time that a process computes in the first epoch, if time grows with tokens.

        The processes wait for each other at the end of each step.
        """
        busy = waited = 0
        for step in self.steps(0):
            totals = np.sum([[self.n_tokens[rows].sum() for rows in micro_batch] for micro_batch in step], axis=0)
            busy += int(totals.sum())
            waited += int(totals.max()) * self.n_processes
        return busy / waited

    def largest(self, n_epochs: int) -> int:
        """Return the largest number of tokens of a micro-batch that has several rows, over some epochs; 0 if none has."""
        return max(
            (
                int(self.n_tokens[rows].sum())
                for epoch in range(n_epochs)
                for step in self.steps(epoch)
                for micro_batch in step
                for rows in micro_batch
                if len(rows) > 1
            ),
            default=0,
        )


def fit_micro_batches(section: S, rows: Dataset, seed: int) -> tuple[S, StepBatches | None]:
    """Return the settings of a process with as few micro-batches as `batch_tokens` allows, and how steps are shared.

    The rows per step stay as set. Without several processes or `batch_tokens`, there is nothing to share: None.
    """
    batches = StepBatches(row_tokens(rows), section, seed)
    if section.batch_tokens is not None:
        n_rows = section.effective_batch_size
        passes = section.passes.model_copy(update={"rows_per_step": batches.rows_per_step})
        n_epochs = math.ceil(passes.n_steps(len(rows)) / passes.n_steps_per_epoch(len(rows)))
        for n_micro in (n for n in range(1, n_rows + 1) if n_rows % n == 0):
            section = section.model_copy(
                update={"gradient_accumulation_steps": n_micro, "batch_size": n_rows // n_micro}
            )
            batches = StepBatches(batches.n_tokens, section, seed)
            if batches.largest(n_epochs) <= (section.batch_tokens or 0):
                break
    elif batches.n_processes == 1:
        return section, None
    return section, batches


def describe(batches: StepBatches, name: str) -> str:
    """Return how the steps are shared, in one line, with advice where processes wait for each other too long."""
    section, n = batches.section, batches.n_processes
    line = (
        f"{name}: a step of {batches.rows_per_step} rows is {section.gradient_accumulation_steps} x {section.batch_size} "
        f"rows of {n} {'process' if n == 1 else 'processes'}"
    )
    if section.batch_tokens is not None and (longest := int(batches.n_tokens.max())) > section.batch_tokens:
        line += f"; the longest row has {longest} tokens, more than batch_tokens {section.batch_tokens}"
    if n == 1:
        return line
    utilisation = batches.utilisation()
    line += f", which compute {100 * utilisation:.0f}% of the time and else wait for the longest rows"
    if utilisation < ENOUGH:
        line += (
            f": raise {name.lower()}.batch_size or {name.lower()}.gradient_accumulation_steps, so that short and long rows "
            "balance, or use fewer processes"
        )
    return line


class BatchesOfSteps(Sampler[list[int]]):
    """The batches of all processes in turns, as accelerate deals them out."""

    def __init__(self, trainer: Trainer, batches: StepBatches) -> None:
        self._trainer, self._batches = trainer, batches

    def __len__(self) -> int:
        return self._batches.n_batches() * self._batches.n_processes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch that the trainer is in, also after it was resumed."""
        n_steps = math.ceil(len(self._batches.n_tokens) / self._batches.rows_per_step)
        for step in self._batches.steps(self._trainer.state.global_step // n_steps):
            for micro_batch in step:
                yield from micro_batch


class SharingTrainer(SplittingTrainer):
    """Mixin for trainers whose steps are shared as `StepBatches` says."""

    step_batches: StepBatches | None = None

    def batches_of_rows(self, sizes: Sequence[int]) -> list[list[int]]:
        """Return the rows of each micro-batch of the first epoch, of all processes."""
        if self.step_batches is None:
            return super().batches_of_rows(sizes)
        return [rows for step in self.step_batches.steps(0) for micro_batch in step for rows in micro_batch]

    def share(self, batches: StepBatches | None, name: str) -> None:
        """Share the steps in this way, and print it. None: leave it to accelerate, in one process."""
        self.step_batches = batches
        if batches is not None:
            print(describe(batches, name))

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of this process's batches."""
        if self.step_batches is None:
            whole: DataLoader = super().get_train_dataloader()
            return whole
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=BatchesOfSteps(self, self.step_batches),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared
