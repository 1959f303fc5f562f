"""One training step, save and reload of a model, on a few tokens, before anything is trained."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.chat.template import Chat
from posttrain.compat.trl_internals import own_forward_afterwards
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward.flat import FlatCollator, use_flat_batches
from posttrain.forward.probe import Probe
from posttrain.forward.routers import has_balance_loss
from posttrain.models.base import base_source
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import load_chat, load_model
from posttrain.models.memory import read_shape
from posttrain.models.stored_settings import StoredSettings, remove_randomness
from posttrain.training.saving import Trained, save_trained

LARGEST = 200_000_000
"""Number of weights up to which a model is tried itself."""
LARGEST_COPY = 400_000_000
FAILURES = (
    OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, ImportError
)  # fmt: skip
"""What libraries raise for a model that they cannot train or save."""

RANDOM_ROUTERS = {"phimoe"}
"""Families that draw experts at random in training where scores are close, which a short probe rarely meets (`sparsemixer`)."""


def try_out(base: Base, section: ModelSection, *, dpo: bool = True) -> str:
    """Train one step, save, reload and compare, and return how batches are laid out and what was tried.

    Args:
        dpo: whether DPO will train it too, which must start exactly at its reference.

    Raises:
        UserError: one of them fails or gives another model.
    """
    tried = section.model_copy(update={"precision": "fp32", "attention": "auto"})
    if section.method == "qlora" and not torch.cuda.is_available():
        tried = tried.model_copy(update={"method": "lora"})
    with (
        tempfile.TemporaryDirectory(prefix="posttrain-trial-") as folder,
        torch.random.fork_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the training itself shows them
        torch.manual_seed(0)
        chat = load_chat(base, section)
        shape = read_shape(section)
        what = "one training step, save and reload are exact"
        if shape is not None and shape.n_parameters <= LARGEST:
            return f"{what}; {_step_save_reload(_Tried(base, tried, dpo), chat, Path(folder))}"
        small = _small_copy(base, section, Path(folder) / "base")
        if small is None:
            return "not tried before training, because no small copy of it can be made"
        update = {"base": small.id, "revision": None, "trust_remote_code": False}
        of_copy = _step_save_reload(_Tried(small, tried.model_copy(update=update), dpo), chat, Path(folder))
        return f"{what} (tried on a small copy); {of_copy}"


@dataclass(frozen=True)
class _Tried:
    """The model that is tried: the base itself or a small copy."""

    base: Base
    section: ModelSection
    dpo: bool


def _step_save_reload(tried: _Tried, chat: Chat, folder: Path) -> str:
    base, section = tried.base, tried.section
    with _named("loading the model"):
        model = load_model(base, section, trainable=True)
    stored, generation = StoredSettings.of(model), _generation_settings(model)
    with own_forward_afterwards(model):
        with _named("one training step"):
            padded = use_flat_batches(model, section, trains=True)
            if tried.dpo:
                _check_start(model, section)
            train_one_step(model, padded=padded is not None)
        expected = Probe.of(model, section)
    with _named("saving the trained model"):
        trained = Trained(model, chat, base, stored)
        kind = save_trained(trained, folder / "checkpoint")
        seal(
            folder / "checkpoint",
            [],
            stage="sft",
            kind=kind,
            base=base,
            parent=None,
            template=chat.template,
            template_kwargs=dict(chat.settings.kwargs),
            template_date=chat.settings.day if chat.has_clock else None,
            stop_ids=chat.stop_ids,
            metrics={},
        )
    with _named("loading the saved model"):
        checkpoint = Checkpoint.load(folder / "checkpoint")
        again = load_model(base, section, checkpoint)
        chat_again = load_chat(base, section.model_copy(update={"chat_template": None}), checkpoint)
    _compare(model, again)
    _compare_chats(chat, chat_again)
    _compare_generation(generation, _generation_settings(again))
    if not Probe.of(again, section).logps.allclose(expected.logps, atol=expected.tolerance):
        raise UserError(_message("a saved and reloaded model has other log-probabilities than the trained one"))
    return f"batches are padded: {padded}" if padded else "batches are flat"


def _check_start(model: Any, section: ModelSection) -> None:
    """Check that the model computes the same in training as in evaluation, once nothing in its settings makes it random."""
    family = model.config.get_text_config().model_type
    if family in RANDOM_ROUTERS:
        raise UserError(
            _message(f"{family} models draw experts at random in training, and DPO could not start at its reference")
        )
    before = Probe.of(model, section)
    remove_randomness(model)
    for training in (False, True):
        if not (changed := before.difference(Probe.of(model, section, training=training))) <= before.tolerance:
            raise UserError(
                _message(
                    f"{family} models compute at random in training ({changed:.2g} nats, without any dropout), and DPO could not "
                    "start at its reference",
                )
            )


def train_one_step(model: Any, *, padded: bool) -> None:
    """Make one step of plain gradient descent on random tokens, so that the trained weights differ from the base's."""
    generator = torch.Generator().manual_seed(1)
    n_vocabulary = model.config.get_text_config().vocab_size
    prompt, chosen, rejected = (torch.randint(n_vocabulary, (n,), generator=generator).tolist() for n in (6, 5, 4))
    where = next(model.parameters()).device
    if padded:
        ids = torch.tensor([prompt + chosen, [*prompt, *rejected, 0]], device=where)
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        labels[1, -1] = -100
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels}
        batch["attention_mask"][:, : len(prompt)] = 1
    else:
        row = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        batch = FlatCollator()([{**row, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}])
        batch = {
            "flat": {name: part.to(where) if torch.is_tensor(part) else part for name, part in batch["flat"].items()}
        }
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if has_balance_loss(inner):  # as SFT does
        batch["output_router_logits"] = True
    model.train()
    output = model(**batch, fused_lm_head=True)
    logps = output.log_probs.sum(dim=1)
    loss = -torch.nn.functional.logsigmoid(0.1 * (logps[0] - logps[1])) - 0.01 * logps.sum()
    if output.aux_loss is not None:
        loss = loss + 0.01 * output.aux_loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = float(torch.stack([gradient.float().norm() for gradient in gradients]).norm()) if gradients else 0.0
    if not 0 < norm < float("inf"):
        raise ValueError(f"the norm of the gradient is {norm}")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 / norm * parameter.grad
                parameter.grad = None


def _compare(model: Any, again: Any) -> None:
    before, after = model.state_dict(), again.state_dict()
    if missing := sorted(before.keys() ^ after.keys()):
        raise UserError(_message(f"saving and reloading loses or adds weights (first: {missing[0]})"))
    differing = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    if differing:
        raise UserError(_message(f"saving and reloading changes {len(differing)} weights (first: {differing[0]})"))


def _compare_chats(chat: Chat, again: Chat) -> None:
    for what, before, after in (
        ("vocabulary or chat template", chat.digest, again.digest),
        ("stop tokens", chat.stop_ids, again.stop_ids),
        ("pad token", chat.tokenizer.pad_token_id, again.tokenizer.pad_token_id),
    ):
        if before != after:
            raise UserError(_message(f"saving and reloading the tokenizer changes its {what} ({before} to {after})"))


def _generation_settings(model: Any) -> dict[str, Any]:
    """Return the settings of a model for generation, without those that the checkpoint takes from the chat template."""
    settings = model.generation_config.to_dict() if model.generation_config else {}
    of_chat = ("eos_token_id", "pad_token_id", "transformers_version")
    return {name: value for name, value in settings.items() if value is not None and name not in of_chat}


def _compare_generation(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise UserError(
                _message(
                    f"saving and reloading changes {name} in generation_config.json ({before.get(name)} to {after.get(name)})"
                )
            )


def _message(what: str) -> str:
    return f"model.base: {what}, so it cannot be trained here without a change: choose another model"


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn what libraries raise for an unsuitable model into a `UserError` that names what was tried."""
    try:
        yield
    except UserError:
        raise
    except FAILURES as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(_message(f"{what} fails ({type(error).__name__}: {reason})")) from error


def _small_copy(base: Base, section: ModelSection, folder: Path) -> Base | None:
    """Write a model of the same kind with few layers and random weights; return None if there is no small one."""
    source, options = base_source(base, section)
    config = AutoConfig.from_pretrained(source, **options)
    if config.get_text_config() is not config or getattr(config, "quantization_config", None) is not None:
        return None
    if section.trust_remote_code and getattr(config, "auto_map", None):
        return None
    config = _cut(config)
    with _named("making a small copy of the model"):
        with torch.device("meta"):
            n_weights = AutoModelForCausalLM.from_config(config).num_parameters()
        if n_weights > LARGEST_COPY:
            return None
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    load_chat(base, section).tokenizer.save_pretrained(folder)
    return Base(id=str(folder), revision=None, digest="trial")


def _cut(config: Any) -> Any:
    """Return a copy of a config with two layers, or as many as have every kind of layer, and narrow inner sizes."""
    config = copy.deepcopy(config)
    n_layers, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)
    kept = 2 if not kinds else max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == n_layers:
            setattr(config, name, value[:kept])
    config.num_hidden_layers = kept
    for name, largest in (
        *((size, 128) for size in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")),
        ("vocab_size", 256), ("sliding_window", 4), ("pad_token_id", 0), ("bos_token_id", 1)
    ):  # fmt: skip
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(largest, getattr(config, name)))
    if getattr(config, "eos_token_id", None) is not None:
        config.eos_token_id = 2
    return config
