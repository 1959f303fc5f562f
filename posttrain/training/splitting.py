"""What a training does about a lack of memory: it tries its largest micro-batch first, and splits one that does not fit later."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import torch
from transformers import Trainer

from posttrain.compat.trl_internals import read_metrics, restore_metrics
from posttrain.forward.flat import FlatCollator
from posttrain.training.order import epoch_order
from posttrain.training.sharding import is_sharded

MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""What a lack of memory raises. A CPU's allocator has no exception of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class SplittingTrainer(Trainer):
    """Mixin for TRL's trainers: a micro-batch that does not fit into memory is split, and the step has the same rows and weights.

    Before the first step the largest micro-batch of the training is tried, without any effect, so that a lack of memory shows at
    once. With several processes a later lack of memory is an error: the others wait in the middle of an exchange of gradients.
    """

    _parts: list[list[dict[str, Any]]]
    """The micro-batches of the current step, each in the parts in which it fits."""
    _n_done = 0
    _random: list[torch.Tensor]
    """States of the random number generators at the beginning of the step, for dropout."""
    _first_step: int | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """Return the micro-batches of a step, and keep them until it ends."""
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        self._parts, self._n_done = [[batch] for batch in batches], 0
        return batches, n_items

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradient of a micro-batch, and return its loss."""
        if self._first_step is None:
            self._first_step = self.state.global_step
            self._try_largest(model, num_items_in_batch)
        if self._n_done == 0:
            self._random = _random_states()
        before = _copy(read_metrics(self))
        try:
            loss: torch.Tensor | None = super().training_step(model, inputs, num_items_in_batch)
        except MEMORY_ERRORS as error:
            first = self.state.global_step == self._first_step  # the launcher makes all micro-batches smaller
            if first or self.accelerator.num_processes > 1 or not is_out_of_memory(error):
                raise
            loss = None
        if loss is None:  # outside of the handler, whose traceback keeps the tensors of the failed pass
            loss = self._repeat(model, num_items_in_batch, before)
        self._n_done += 1
        return loss

    def _repeat(self, model: Any, n_items: Any, before: tuple[dict[str, list[float]], int]) -> torch.Tensor:
        """Compute the gradient of the step up to here again, the last micro-batch first as it was, then in ever smaller parts."""
        whole = self._parts[self._n_done][0]
        n_parts = 1
        while True:
            model.zero_grad()  # a failed backward pass has changed some gradients
            gc.collect()
            torch.cuda.empty_cache()
            parts = split_batch(whole, n_parts)
            torch.set_rng_state(self._random[0])
            if len(self._random) > 1:
                torch.cuda.set_rng_state(self._random[1])
            try:
                for part in (part for parts_before in self._parts[: self._n_done] for part in parts_before):
                    super().training_step(model, part, n_items)
                restore_metrics(self, *_copy(before))
                losses = [super(SplittingTrainer, self).training_step(model, part, n_items) for part in parts]
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error) or len(parts) < n_parts:  # single rows do not fit
                    raise
            else:
                break
            n_parts *= 2
        self._parts[self._n_done] = parts
        _merge_metrics(read_metrics(self)[0], before[0], [n_rows(part) for part in parts])
        if len(parts) > 1:
            print(
                f"Out of memory in step {self.state.global_step + 1}: its micro-batch of {n_rows(whole)} rows was computed in "
                f"{len(parts)} parts, with the same weight of every row"
            )
        return torch.stack(losses).sum()

    def _try_largest(self, model: Any, n_items: Any) -> None:
        """Compute the largest micro-batch and drop its gradient and metrics. The optimizer's state is there in size only."""
        largest = self._largest_rows()
        if self.is_deepspeed_enabled or largest is None:  # DeepSpeed's backward pass makes a step
            return
        before = _copy(read_metrics(self))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        per_weight = 2 if "8bit" in str(self.args.optim) else 8
        n_bytes = 0 if is_sharded(self) or self.optimizer.state else per_weight * sum(p.numel() for p in trained)
        state = torch.empty(n_bytes, dtype=torch.uint8, device=self.args.device)
        with torch.random.fork_rng():
            super().training_step(model, self.data_collator([self.train_dataset[i] for i in largest]), n_items)
        model.zero_grad()
        restore_metrics(self, *before)
        del state

    def _largest_rows(self) -> list[int] | None:
        """Return the rows of the largest micro-batch of the first epoch; None if it is the very first one."""
        rows = self.train_dataset
        names = [name for name in ("prompt_ids", "chosen_ids", "rejected_ids") if name in rows.column_names]
        columns = [rows[name] for name in names or ["input_ids"]]
        sizes = [sum(map(len, row)) for row in zip(*columns, strict=True)]
        order, width = epoch_order(len(sizes), self.args.seed), self.args.per_device_train_batch_size
        n_used = self.args.gradient_accumulation_steps * self.args.world_size * self.state.max_steps
        batches = [order[start : start + width] for start in range(0, len(order), width)][:n_used]
        largest = max(batches, key=lambda batch: sum(sizes[i] for i in batch))
        return None if largest == batches[0] else largest


def _random_states() -> list[torch.Tensor]:
    """Return the states of the random number generators of the CPU and of the current GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _copy(metrics: tuple[dict[str, list[float]], int]) -> tuple[dict[str, list[float]], int]:
    return {name: list(values) for name, values in metrics[0].items()}, metrics[1]


def _merge_metrics(metrics: dict[str, list[float]], before: dict[str, list[float]], weights: list[int]) -> None:
    """Replace the figures of the parts of a micro-batch by their mean, in which every row has the same weight.

    Figures that TRL averages over tokens (entropy, logits) thereby change a little.
    """
    for name, values in metrics.items():
        n = len(before.get(name, []))
        new = values[n:]
        if len(new) == len(weights):
            values[n:] = [sum(w * value for w, value in zip(weights, new, strict=True)) / sum(weights)]


def n_rows(batch: dict[str, Any]) -> int:
    """Return the number of pairs or rows of a micro-batch."""
    return len(batch["ref_chosen_logps"] if "ref_chosen_logps" in batch else batch["labels"])


def split_batch(batch: dict[str, Any], n_parts: int) -> list[dict[str, Any]]:
    """Return a micro-batch in at most `n_parts` parts of about as many rows."""
    n = n_rows(batch)
    if n_parts == 1:
        return [batch]
    bounds = [round(n * i / min(n_parts, n)) for i in range(min(n_parts, n) + 1)]
    return [_rows_of(batch, n, slice(start, end)) for start, end in pairwise(bounds)]


def _rows_of(batch: dict[str, Any], n: int, rows: slice) -> dict[str, Any]:
    """Return some of the n rows of a micro-batch."""
    if "flat" in batch:
        return FlatCollator()(list(batch["flat"]["examples"].rows[rows]))
    second = slice(n + rows.start, n + rows.stop)  # chosen responses come first, then the rejected ones
    return {
        name: torch.cat((value[rows], value[second])) if len(value) == 2 * n else value[rows]
        for name, value in batch.items()
    }
