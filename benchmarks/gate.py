"""The callback that every engine trains under: one step at a time, timed, and in the first step counted."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

import torch
import trl.trainer.utils
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

TILE = getattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32_768)
"""Of the vocabulary, in TRL's head; the older TRL in LLaMA-Factory's environment has no tiles."""


class HeadRows(TorchDispatchMode):
    """Counts the rows that are projected onto the vocabulary, whichever function does it.

    A product over the hidden size with the vocabulary, or a tile of it, in its result is the LM head: its forward, or the
    same again where the backward computes it anew. The backward's own two products run over the vocabulary or over the rows.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.hidden_size, self.vocab_size, self.n_logits = hidden_size, vocab_size, 0
        self.widths = {vocab_size, TILE, vocab_size % TILE}

    @property
    def rows(self) -> int:
        """How many rows met the whole vocabulary."""
        return self.n_logits // self.vocab_size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            inner = args[-1].shape[-2]
            if inner == self.hidden_size and self.widths & set(result.shape[-2:]):
                self.n_logits += result.numel()
        return result


class Gate(TrainerCallback):
    """Stops after each step until the driver lets it go on, so that several engines can take turns on one machine.

    A timed step reaches from the permission to the end of the step: fetching the batch, forward, backward, update and
    the step before's logging.
    """

    def __init__(self, gated: bool) -> None:
        self.gated = gated
        self.waited_s = 0.0
        self.step_s: list[float] = []
        self.losses: list[float] = []
        self.counts: dict[str, int] = {}
        self._report = os.fdopen(int(os.environ["BENCH_REPORT_FD"]), "w")
        self._spawned = float(os.environ["BENCH_SPAWNED"])

    def tell(self, **message: Any) -> None:
        """Sends the driver a line."""
        print(json.dumps(message), file=self._report, flush=True)

    def _turn(self, **message: Any) -> None:
        began = time.monotonic()
        self.tell(**message)
        if self.gated:
            sys.stdin.readline()
        self._let_go = time.monotonic()
        self.waited_s += self._let_go - began

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Every engine must see the same pairs in the same steps. LLaMA-Factory has a setting of its own for this.
        args.train_sampling_strategy = "sequential"

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.step_s = []
        if not hasattr(self, "_mode"):
            self._count(model)

    def _count(self, model: Any) -> None:
        """Counts from here to the end of the first step."""
        # Every MLP of this kind, so that a reference model is counted too; inside of the layer, so that what gradient
        # checkpointing computes again is counted again.
        kind = next(type(module) for name, module in model.named_modules() if name.endswith("layers.0.mlp"))
        self._mlp_rows, self._n_layers = 0, model.config.num_hidden_layers

        def count(module: nn.Module, args: tuple[Any, ...]) -> None:
            if type(module) is kind:
                self._mlp_rows += args[0].shape[:-1].numel()

        self._hook = register_module_forward_pre_hook(count)
        self._mode = HeadRows(model.config.hidden_size, model.config.vocab_size)
        self._mode.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            if not self.counts:
                self._mode.__exit__(None, None, None)
                self._hook.remove()
                self.counts = {"backbone_tokens": self._mlp_rows // self._n_layers, "head_rows": self._mode.rows}
            self._turn(event="ready")
        else:
            self.step_s.append(time.monotonic() - self._let_go)
            self._turn(event="step", step_s=self.step_s[-1])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]

    def finish(self, **facts: Any) -> None:
        """Sends what was measured; the wall time is the process's own, less what it waited for its turn."""
        self.tell(
            event="done",
            wall_s=time.monotonic() - self._spawned - self.waited_s,
            peak_rss_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            step_s=self.step_s,
            losses=self.losses,
            **self.counts,
            **facts,
        )
