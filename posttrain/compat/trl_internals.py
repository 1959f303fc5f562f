"""Private parts of TRL: the fused LM head, the preparation of DPO's datasets, and the metrics between two logs."""

from __future__ import annotations

import functools
import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.dpo_trainer
import trl.trainer.utils
from peft import PeftModel
from torch import Tensor

UNSCALED = {"logit_scale": 1.0, "temperature": 1.0, "cast_lm_head_to_fp32": False, "final_logit_softcapping": None}
"""Variables of TRL's fused forward and their values where the head is a plain matrix product."""


def forward_accepts(model: Any, parameter: str) -> bool:
    """Return whether the model's current `forward` has a parameter of this name.

    Reason: TRL replaces `model.forward` with a function that takes `fused_lm_head`, and keeps the old signature for
    `inspect.signature`. Nothing else tells whether a model has the fused head, and adding it twice wraps it twice.
    Read against: TRL 1.15 and 1.16 (`trl.trainer.utils.add_fused_lm_head`).
    Remove when: TRL marks a model that has the fused head, or `add_fused_lm_head` can be called twice.
    """
    return parameter in inspect.signature(model.forward, follow_wrapped=False).parameters


def replace_forward(model: Any, forward: Callable[..., Any]) -> None:
    """Replace the model's `forward` with a function whose first argument is the model.

    Reason: TRL's trainers call the model themselves, so another way to compute a batch must be the model's own `forward`.
    TRL installs its fused head in the same way.
    Read against: TRL 1.15 and 1.16 (`trl.trainer.utils.add_fused_lm_head`).
    Remove when: TRL's trainers take a function that computes the log-probabilities.
    """
    model.forward = types.MethodType(forward, model)


@contextmanager
def own_forward_afterwards(model: Any) -> Iterator[None]:
    """Put the model's `forward` back at the end, as it was before.

    Reason: the replaced `forward` refers to the model, and the model to it. Such a cycle keeps gigabytes of weights in memory
    until Python collects garbage.
    Read against: TRL 1.15 and 1.16 (`trl.trainer.utils.add_fused_lm_head`).
    Remove when: as for `replace_forward`.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    before = vars(inner).get("forward")
    try:
        yield
    finally:
        vars(inner).pop("forward", None)
        if before is not None:
            inner.forward = before


@contextmanager
def without_reference_model() -> Iterator[None]:
    """Keep `DPOTrainer` from hashing all weights when it is created, and from loading a second model under FSDP.

    Reason: the hash, 50 s for 8 billion weights, names TRL's cached reference log-probabilities, and the second model, whole in
    every process, computes them. `PreparedPairs` uses neither.
    Read against: TRL 1.15 and 1.16 (`hash_module` and `create_model_from_path` in `DPOTrainer.__init__`).
    Remove when: TRL does both only where it computes the reference's log-probabilities.
    """
    module: Any = trl.trainer.dpo_trainer
    replaced: dict[str, Any] = {"hash_module": lambda model: "", "create_model_from_path": lambda *args, **kwargs: None}
    before = {name: getattr(module, name, None) for name in replaced}
    for name, function in replaced.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is None:
                delattr(module, name)
            else:
                setattr(module, name, function)


class _TorchHead:
    """Stands in for `trl.kernels.ChunkedLogProbFunction`, with the same arguments and results, in plain PyTorch."""

    @staticmethod
    def apply(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, *settings: Any
    ) -> tuple[Tensor | None, ...]:
        _, softcap, logit_scale, names = settings
        logits = torch.nn.functional.linear(hidden, weight, bias).float() * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        logps = logits.log_softmax(dim=-1)
        fields = {
            "entropy": lambda: -(logps.exp() * logps).sum(dim=-1),
            "log_sum_sq_probs": lambda: (2 * logps.detach()).logsumexp(dim=-1),
            "mean_logits": lambda: logits.detach().mean(dim=-1),
            "is_top1": lambda: logits.argmax(dim=-1) == targets,
        }
        optional = [field() if name in names else None for name, field in fields.items()]
        return logps.gather(1, targets[:, None])[:, 0], *optional


def fused_head_kernel() -> Any:
    """Return the function that computes TRL's fused head, after giving TRL 1.15 one that works on a CPU.

    Reason: the kernel of TRL 1.15 needs Triton and a GPU, so TRL 1.15 cannot train on a CPU. TRL 1.16 can.
    Read against: TRL 1.15 and 1.16 (`trl.trainer.utils._ChunkedLogProbFunction`; `_use_triton` exists since 1.16).
    Remove when: pyproject.toml no longer allows TRL 1.15.
    """
    _replace_kernel()
    utils: Any = trl.trainer.utils
    return utils._ChunkedLogProbFunction


@functools.cache
def _replace_kernel() -> None:
    utils: Any = trl.trainer.utils
    if not hasattr(utils, "_use_triton") and not torch.cuda.is_available():
        utils._ChunkedLogProbFunction = _TorchHead


def plain_head_fields(fused_forward: Callable[..., Any]) -> frozenset[str] | None:
    """Return the fields that TRL's fused head computes besides `log_probs`; None where it scales or caps the logits.

    Also None where the settings are not found, so that TRL's own head is used.

    Reason: the head's settings (scale, temperature, soft cap, fields) exist only as variables that the forward encloses.
    Read against: TRL 1.15 and 1.16 (`trl.trainer.utils.add_fused_lm_head`).
    Remove when: TRL stores the settings of the fused head on the model.

    Args:
        fused_forward: the function that `trl.trainer.utils.add_fused_lm_head` made.
    """
    settings = inspect.getclosurevars(fused_forward).nonlocals
    if "outputs" not in settings or any(settings.get(name, ...) != value for name, value in UNSCALED.items()):
        return None
    return frozenset(settings["outputs"]) - {"log_probs"}


def score_positions(fused_forward: Callable[..., Any], head: Any, hidden: Tensor, targets: Tensor) -> Any:
    """Return TRL's `FusedCausalLMOutput` for given hidden states, with every scaling that TRL knows.

    Reason: TRL's head can only be reached through the whole model's forward, which would run the padded backbone. The
    forward is given a stand-in for the model whose backbone returns the hidden states.
    Read against: TRL 1.15 and 1.16. The forward uses `self.base_model` and `self.get_output_embeddings` and nothing else.
    Remove when: TRL has a public function from hidden states to `FusedCausalLMOutput`.

    Args:
        fused_forward: the function that `trl.trainer.utils.add_fused_lm_head` made.
        head: the model's output embeddings.
        hidden: (1, T, width).
        targets: (1, T) token ids.
    """
    backbone_output = types.SimpleNamespace(last_hidden_state=hidden)
    model = types.SimpleNamespace(base_model=lambda **_: backbone_output, get_output_embeddings=lambda: head)
    return fused_forward(model, shift_labels=targets, fused_lm_head=True)


class PreparedPairs:
    """Mixin for `DPOTrainer` and `RewardTrainer`: datasets are tokenised and hold the reference's log-probabilities already.

    Reason: TRL tokenises and scores by itself, with other rules for truncation, and drops pairs without counting them.
    `SFTConfig.dataset_kwargs` can switch the preparation off; `DPOConfig` has no such setting.
    Read against: TRL 1.15 and 1.16 (`DPOTrainer.__init__` and `DPOTrainer.evaluate` call both methods; `RewardTrainer` calls
    the first one, and removes long rows by the length of the responses alone).
    Remove when: `DPOTrainer` leaves a dataset alone that has `prompt_ids` and `ref_chosen_logps`.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def read_metrics(trainer: Any) -> tuple[dict[str, list[float]], int]:
    """Return the metrics that were measured since the last log, and the number of tokens trained so far.

    Reason: TRL averages metrics over the steps between two logs and keeps them in memory only, so a checkpoint loses them.
    Read against: TRL 1.15 and 1.16 (`_metrics` and `_total_train_tokens` of `SFTTrainer` and `DPOTrainer`).
    Remove when: TRL saves them in its training checkpoints.
    """
    return trainer._metrics["train"], int(trainer._total_train_tokens)


def restore_metrics(trainer: Any, metrics: dict[str, list[float]], n_tokens: int) -> None:
    """Set what `read_metrics` returned. Reason, versions and condition for removal are the same."""
    trainer._metrics = {"train": defaultdict(list, metrics), "eval": defaultdict(list)}
    trainer._total_train_tokens = n_tokens


def weight_metrics(trainer: Any, n_pairs: int, beginnings: tuple[str, ...] = ("rewards/",)) -> None:
    """Let the validation metrics of the last batch count once for each of its pairs.

    Args:
        beginnings: of the metrics' names.

    Reason: TRL averages the metrics of a validation over batches, so each pair of a smaller last batch has a larger weight.
    Read against: TRL 1.15 and 1.16 (`_metrics` of `DPOTrainer` and `RewardTrainer`, one value a batch, averaged by `log`).
    Remove when: TRL weights validation metrics by the number of pairs.
    """
    for name, values in trainer._metrics["eval"].items():
        if name.startswith(beginnings):
            values.extend([values[-1]] * (n_pairs - 1))


def add_metric(trainer: Any, name: str, value: float) -> None:
    """Add a value of the current batch to the metrics that a trainer averages and logs.

    Reason: TRL's trainers have no other way to log a figure of each batch.
    Read against: TRL 1.15 and 1.16 (`_metrics` of `RewardTrainer`).
    Remove when: TRL has a public method for it.
    """
    trainer._metrics["train" if trainer.model.training else "eval"][name].append(value)
