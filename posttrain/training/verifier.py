"""Training of a verifier with TRL's RewardTrainer, on tokenised pairs, with each prompt computed once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from posttrain.chat.tokens import PairTokens, check_chat
from posttrain.compat.transformers_internals import attention_implementation, with_one_gpu
from posttrain.compat.trl_internals import PreparedPairs, add_metric, weight_metrics
from posttrain.config import VerifierSection
from posttrain.data.rows import Turn
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError
from posttrain.forward.attention import KERNELS
from posttrain.forward.flat import announce
from posttrain.forward.scalar_head import ScoredCollator, use_flat_scores
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat
from posttrain.models.stored_settings import StoredSettings, remove_randomness
from posttrain.models.token_ids import check_token_ids
from posttrain.models.verifier_model import new_verifier
from posttrain.training.launcher import on_processes
from posttrain.training.resume.resumable_trainer import ResumableTrainer
from posttrain.training.stopping import stopping_callbacks
from posttrain.training.trainer import TrainingJob, TrainingSetup, train_and_seal, train_in_fp32, training_arguments

TRAINED_PROMPTS = "trained_prompts.json"
"""File of a verifier's checkpoint: keys of the prompts that it has seen in training."""
KEY_BYTES = 12


@dataclass(frozen=True)
class VerifierData:
    """The pairs that a verifier is trained on."""

    tokens: PairTokens
    prompts: tuple[str, ...]
    """Keys of the training and validation prompts, as `prompt_keys` gives them."""


def prompt_keys(prompts: Iterable[list[Turn]]) -> tuple[str, ...]:
    """Return the keys of prompts, without doubles and in order. They ignore case and white space."""
    return tuple(sorted({prompt_key(prompt)[:KEY_BYTES].hex() for prompt in prompts}))


class VerifierTrainer(PreparedPairs, ResumableTrainer, RewardTrainer):
    """TRL's trainer for pairs that are tokenised already. All pairs of a step have the same weight."""

    loss: str = "pairs"
    pairs_per_batch: float
    """Mean number of pairs in the micro-batches of the current step."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        self.pairs_per_batch = sum(map(_n_pairs, batches)) / max(1, len(batches))
        return batches, n_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        n_pairs = _n_pairs(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        absolute, n_right = absolute_loss(outputs.logits)
        if self.loss != "pairs":
            loss = absolute if self.loss == "absolute" else (loss + absolute) / 2
            add_metric(self, "absolute_accuracy", n_right / (2 * n_pairs))
        if self.model.training:
            loss = loss * (n_pairs / self.pairs_per_batch)
        else:
            weight_metrics(self, n_pairs, ("accuracy", "absolute_accuracy", "margin", "mean_reward"))
        return (loss, outputs) if return_outputs else loss


def _n_pairs(batch: dict[str, Any]) -> int:
    return len(batch["flat"]["last"] if "flat" in batch else batch["input_ids"]) // 2


def absolute_loss(scores: Tensor) -> tuple[Tensor, float]:
    """Return the mean binary cross-entropy of the question whether an answer is right, and the number of right replies to it.

    Args:
        scores: log-odds that an answer is right, of all chosen and then all rejected answers: (2 x pairs, 1).

    Source: Cobbe et al. 2021, section 4.2.
    """
    chosen, rejected = scores.flatten().float().chunk(2)
    loss = -(logsigmoid(chosen).mean() + logsigmoid(-rejected).mean()) / 2
    return loss, float((chosen > 0).sum() + (rejected < 0).sum())


def train_verifier(data: VerifierData, start: Checkpoint, section: VerifierSection, job: TrainingJob) -> Checkpoint:
    """Return a verifier that starts from the layers of a checkpoint, which may be the base itself.

    Raises:
        UserError: the tokens are another tokenizer's or have other lengths, no pair is left, or the loss is NaN or infinite.
    """
    return on_processes(section, _train, data, start, job=job)


def _train(section: VerifierSection, data: VerifierData, start: Checkpoint, job: TrainingJob) -> Checkpoint:
    set_seed(job.seed)  # for the head, which is drawn before the trainer sets the seed
    tokens, chat = data.tokens, load_chat(job.base, job.model, start)
    check_chat(tokens, chat, "the model that the verifier starts from")
    if tokens.lengths != section.lengths:
        raise UserError(
            f"verifier: the pairs were cut to {tokens.lengths}, but the settings say {section.lengths}: tokenise them again"
        )
    train, validation = tokens.rows("train"), tokens.rows("validation")
    if len(train) == 0:
        raise UserError(
            f"verifier.max_length {section.max_length}: no training pair has room for a response ({tokens.cut['train']}): raise "
            "it, or lower verifier.max_prompt_length"
        )
    pad_id = chat.tokenizer.pad_token_id
    model = new_verifier(job.base, job.model, start, pad_id)
    stored = StoredSettings.of(model)
    check_token_ids(train, model)
    remove_randomness(model)
    has_validation = len(validation) > 0
    trainer = VerifierTrainer(
        model=model,
        args=with_one_gpu(_reward_config(section, training_arguments(section, job, model, has_validation))),
        train_dataset=train,
        eval_dataset=validation if has_validation else None,
        processing_class=chat.tokenizer,
        callbacks=[*stopping_callbacks(section, has_validation=has_validation, start=job.start), *job.callbacks],
    )
    trainer.loss = section.loss
    train_in_fp32(trainer.model)
    padded = use_flat_scores(trainer.model, job.model, pad_id)
    announce(padded)
    trainer.data_collator = ScoredCollator(pad_id, flat=padded is None)
    batches = f"padded: {padded}" if padded else f"flat, {KERNELS[attention_implementation(trainer.model)]}"
    cut = {f"n_{name}": count for name, count in tokens.cut["train"].items()}
    counts = {"n_pairs": len(train), "n_validation": len(validation), **cut}
    about = {"max_length": section.max_length, "max_prompt_length": section.max_prompt_length, "pad_id": pad_id}
    files = {TRAINED_PROMPTS: json.dumps(data.prompts)}
    return train_and_seal(
        TrainingSetup(trainer, chat, job, "verifier", start, counts, batches, stored, about=about, files=files)
    )


def _reward_config(section: VerifierSection, arguments: dict[str, Any]) -> RewardConfig:
    taken = {name: value for name, value in arguments.items() if name != "router_aux_loss_coef"}
    return RewardConfig(
        **taken,
        center_rewards_coefficient=section.center_rewards_coefficient,
        remove_unused_columns=False,  # the collator reads the prompts
    )


def trained_prompts(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the keys of the prompts that a verifier was trained on."""
    return frozenset(json.loads((checkpoint.path / TRAINED_PROMPTS).read_text(encoding="utf-8")))


def check_unseen(checkpoint: Checkpoint, prompts: Iterable[list[Turn]], name: str) -> None:
    """Check that a verifier has seen none of the prompts on which it is to judge models.

    Args:
        name: of the verifier, as the user gave it.

    Raises:
        UserError: it was trained on some of them.
    """
    asked = prompt_keys(prompts)
    seen = trained_prompts(checkpoint)
    if n_seen := sum(key in seen for key in asked):
        raise UserError(
            f"verifier {name}: was trained on {n_seen} of the {len(asked)} prompts that it is to judge answers to, and knows which "
            "of their answers were preferred: train it with the same data.sources, data.seed and sizes of the splits as this run, "
            "which keeps the prompts apart, or name another verifier"
        )
