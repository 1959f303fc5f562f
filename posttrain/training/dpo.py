"""Direct preference optimisation with TRL's DPOTrainer, from an SFT checkpoint and its stored log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from posttrain.compat.trl_internals import PreparedPairs
from posttrain.config import DpoSection, ModelSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import dpo_loss, score_pairs
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import Model, load_chat, load_model
from posttrain.models.precision import uses_bf16
from posttrain.training.launcher import on_processes
from posttrain.training.reference import ReferenceLogps
from posttrain.training.resume.resumable_trainer import ResumableTrainer
from posttrain.training.stopping import stopping_callbacks
from posttrain.training.trainer import TrainingJob, train_and_seal, training_arguments, use_flat_rows

N_START_PAIRS = 16
"""Pairs whose log-probabilities are compared with the reference before the first update."""


class PairTrainer(PreparedPairs, ResumableTrainer, DPOTrainer):
    """TRL's trainer for pairs that are tokenised and scored already. All pairs of a step have the same weight.

    With TRL alone, the pairs of a smaller last micro-batch have a larger weight.
    """

    pairs_per_batch: float
    """Mean number of pairs in the micro-batches of this step."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        self.pairs_per_batch = sum(len(batch["ref_chosen_logps"]) for batch in batches) / max(1, len(batches))
        return batches, n_items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * (len(inputs["ref_chosen_logps"]) / self.pairs_per_batch) if self.model.training else loss


def train_dpo(reference: ReferenceLogps, sft_checkpoint: Checkpoint, dpo: DpoSection, stage: TrainingJob) -> Checkpoint:
    """The SFT policy after preference optimisation against itself as the reference.

    Args:
        reference: the tokenised pairs of the training and validation splits, scored with the SFT checkpoint.

    Raises:
        UserError: training would not start at the reference, no pair is left, or the loss is not a number.
    """
    return on_processes(dpo, _train, reference, sft_checkpoint, stage=stage)


def _train(dpo: DpoSection, reference: ReferenceLogps, sft_checkpoint: Checkpoint, stage: TrainingJob) -> Checkpoint:
    if reference.lengths != dpo.lengths:
        raise UserError(
            f"dpo.max_length {dpo.max_length} and max_prompt_length {dpo.max_prompt_length} are asked for, but the reference "
            f"was scored with {reference.lengths.max_length} and {reference.lengths.max_prompt_length}: score it again"
        )
    set_seed(stage.seed)  # of an adapter's first weights; the trainer, which sets it again, comes after them
    chat = load_chat(stage.base, stage.model, sft_checkpoint)
    train, validation = reference.rows("train"), reference.rows("validation")
    if len(train) == 0:
        raise UserError(
            f"dpo.max_length {dpo.max_length}: no training pair has room for a response ({reference.cut['train']}): raise it, "
            "or lower dpo.max_prompt_length"
        )
    policy = load_model(stage.base, stage.model, sft_checkpoint, trainable=True)
    arguments = training_arguments(dpo, stage, policy, has_validation=len(validation) > 0)
    trainer = PairTrainer(
        model=policy,
        args=DPOConfig(
            **arguments,
            loss_type=dpo.losses,
            loss_weights=dpo.loss_weights,
            beta=dpo.beta,
            label_smoothing=dpo.label_smoothing,
            f_divergence_type=dpo.f_divergence_type,
            f_alpha_divergence_coef=dpo.f_alpha_divergence_coef,
            discopop_tau=dpo.discopop_tau,
            use_weighting=dpo.use_weighting,
            precompute_ref_log_probs=True,
        ),
        train_dataset=train,
        eval_dataset=validation if len(validation) else None,
        processing_class=chat.tokenizer,
        callbacks=[
            *stopping_callbacks(dpo, has_validation=len(validation) > 0, start=stage.start),
            *stage.callbacks,
        ],
    )
    if isinstance(policy, PeftModel) and "ref" in policy.peft_config:
        # TRL copies the adapter as its reference; here the stored log-probabilities are that.
        policy.delete_adapter("ref")
    batches = use_flat_rows(trainer, stage.model)
    first = train.select(range(min(N_START_PAIRS, len(train))))
    check_start(policy, first, reference, sft_checkpoint, stage.model, dpo)
    facts = {"n_pairs": len(train), **{f"n_{name}": count for name, count in reference.cut["train"].items()}}
    return train_and_seal(trainer, chat, stage, "dpo", sft_checkpoint, facts, batches)


def check_start(
    policy: Model, pairs: Dataset, reference: ReferenceLogps, expected: Checkpoint, model: ModelSection, dpo: DpoSection
) -> None:
    """Proves that training starts at the reference: same log-probabilities, so the loss is ln 2 and the margin 0.

    Only this comparison tells: base weights, a forgotten adapter or a wrong reference also train, and also look well.

    Args:
        pairs: tokenised, with `ref_chosen_logps` and `ref_rejected_logps`.
        expected: the checkpoint that the policy should be.

    Raises:
        UserError: naming the checkpoint that was expected and the one that was scored.
    """
    scored = score_pairs(policy, pairs, model, 2 * dpo.batch_size * dpo.max_length, "start of DPO")  # as in training
    found = torch.from_numpy(scored.chosen_logps), torch.from_numpy(scored.rejected_logps)
    stored = torch.tensor(list(pairs["ref_chosen_logps"])), torch.tensor(list(pairs["ref_rejected_logps"]))
    loss, margin = (float(values.mean()) for values in dpo_loss(*found, *stored, dpo.beta))
    # Rounding grows with the sum: bf16 keeps 3 digits, fp32 keeps 7, of every token's logits.
    relative = 2e-2 if uses_bf16(model) else 1e-4
    tolerance = 0.01 + relative * max(float(values.abs().max()) for values in stored)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, stored, strict=True))
    if worst > tolerance or reference.checkpoint != expected.digest:
        raise UserError(
            f"DPO does not start at its reference: log-probabilities differ by up to {worst:.4g} nats (at most {tolerance:.2g} is "
            f"rounding), loss {loss:.4f} instead of {math.log(2):.4f}, margin {margin:.4f} instead of 0. Expected the SFT "
            f"checkpoint {expected.digest[:16]}; the reference was scored with {reference.checkpoint[:16]}: score the reference "
            "again with the checkpoint that DPO starts from"
        )
    print(f"DPO starts at {expected.digest[:16]}: loss {loss:.4f} (ln 2), margin {margin:.4f}, on {len(pairs)} pairs")
