"""Direct preference optimisation with TRL's DPOTrainer, from an SFT checkpoint and its stored log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from posttrain.compat.transformers_internals import with_one_gpu
from posttrain.compat.trl_internals import PreparedPairs, weight_metrics, without_reference_model
from posttrain.config import DpoSection, ModelSection
from posttrain.errors import UserError
from posttrain.forward.logprobs import dpo_loss, score_as_it_is
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import Model, load_chat, load_model
from posttrain.models.precision import is_16_bit
from posttrain.models.stored_settings import StoredSettings, remove_randomness
from posttrain.models.token_ids import check_token_ids
from posttrain.training.launcher import on_processes
from posttrain.training.reference import ReferenceLogps, TrainedOn
from posttrain.training.resume.resumable_trainer import ResumableTrainer
from posttrain.training.splitting import SplittingTrainer
from posttrain.training.stopping import stopping_callbacks
from posttrain.training.trainer import TrainingJob, TrainingSetup, prepare, train_and_seal, training_arguments

N_START_PAIRS = 16
"""Number of pairs whose log-probabilities are compared with the reference before the first update."""


class PairTrainer(PreparedPairs, SplittingTrainer, ResumableTrainer, DPOTrainer):
    """TRL's trainer for pairs that are tokenised and scored already. All pairs of a step have the same weight.

    With TRL alone, the pairs of a smaller last micro-batch have a larger weight.
    """

    pairs_per_batch: float
    """Mean number of pairs in the micro-batches of the current step."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        self.pairs_per_batch = sum(len(batch["ref_chosen_logps"]) for batch in batches) / max(1, len(batches))
        return batches, n_items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        n_pairs = len(inputs["ref_chosen_logps"])
        if self.model.training:
            return loss * (n_pairs / self.pairs_per_batch)
        weight_metrics(self, n_pairs)
        return loss


def train_dpo(reference: ReferenceLogps, sft_checkpoint: Checkpoint, dpo: DpoSection, job: TrainingJob) -> Checkpoint:
    """Return the SFT policy after preference optimisation with itself as the reference.

    Args:
        reference: the tokenised pairs of the training and validation splits, scored with the SFT checkpoint.

    Raises:
        UserError: the reference has other lengths, training would not start at the reference, no pair is left, or the loss is
            NaN or infinite.
    """
    reference.check_read(TrainedOn([dpo.passes], job.seed))  # a process knows only its own rows of a step
    return on_processes(dpo, _train, reference, sft_checkpoint, job=job)


def _train(dpo: DpoSection, reference: ReferenceLogps, sft_checkpoint: Checkpoint, job: TrainingJob) -> Checkpoint:
    reference.check_lengths(dpo.lengths)
    set_seed(job.seed)  # for an adapter's initial weights, which are drawn before the trainer sets the seed
    chat = load_chat(job.base, job.model, sft_checkpoint)
    train, validation = reference.rows("train"), reference.rows("validation")
    if len(train) == 0:
        raise UserError(
            f"dpo.max_length {dpo.max_length}: no training pair has room for a response ({reference.cut['train']}): raise it, "
            "or lower dpo.max_prompt_length"
        )
    policy = load_model(job.base, job.model, sft_checkpoint, trainable=True)
    stored = StoredSettings.of(policy)
    check_token_ids(train, policy)
    if random := remove_randomness(policy):
        print(f"DPO: {', '.join(random)} of the model are 0, so that training starts exactly at the reference")
    with without_reference_model():
        trainer = PairTrainer(
            model=policy,
            args=with_one_gpu(_dpo_config(dpo, training_arguments(dpo, job, policy, len(validation) > 0))),
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            processing_class=chat.tokenizer,
            callbacks=[*stopping_callbacks(dpo, has_validation=len(validation) > 0, start=job.start), *job.callbacks],
        )
    if isinstance(policy, PeftModel) and "ref" in policy.peft_config:
        # TRL copies the adapter to use it as the reference. The stored log-probabilities take its place.
        policy.delete_adapter("ref")
    batches = prepare(trainer, job.model)
    check_start(policy, reference, sft_checkpoint, job.model, dpo)
    cut = {f"n_{name}": count for name, count in reference.cut["train"].items()}
    counts = {"n_pairs": len(train), "n_validation": len(validation), **cut}
    return train_and_seal(TrainingSetup(trainer, chat, job, "dpo", sft_checkpoint, counts, batches, stored))


def _dpo_config(dpo: DpoSection, arguments: dict[str, Any]) -> DPOConfig:
    return DPOConfig(
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
    )


def check_start(
    policy: Model, reference: ReferenceLogps, expected: Checkpoint, model: ModelSection, dpo: DpoSection
) -> None:
    """Check that training starts at the reference: same log-probabilities, so the loss is ln 2 and the margin 0.

    With `dpo.reference: sft` the reference is another model on purpose: where training starts is printed.

    No other check finds wrong base weights, a missing adapter or a wrong reference: training works with them too, and its
    curves look normal.

    Args:
        expected: the checkpoint that the policy should be.

    Raises:
        UserError: the log-probabilities differ; names the expected checkpoint and the one that was scored.
    """
    train = reference.rows("train").with_format("arrow")[:]
    pairs = Dataset(train.filter(pc.is_finite(train["ref_chosen_logps"])).slice(0, N_START_PAIRS))  # not all are scored
    policy.train()  # as in training: dropout that is left would move the start
    scored = score_as_it_is(policy, pairs, model, 2 * dpo.batch_size * dpo.max_length, "start of DPO")
    found = torch.from_numpy(scored.chosen_logps), torch.from_numpy(scored.rejected_logps)
    stored = torch.tensor(list(pairs["ref_chosen_logps"])), torch.tensor(list(pairs["ref_rejected_logps"]))
    loss, margin = (float(values.mean()) for values in dpo_loss(*found, *stored, dpo.beta))
    # Rounding grows with the sum: bf16 keeps 3 digits, fp32 keeps 7, of every token's logits.
    relative = 2e-2 if is_16_bit(model) else 1e-4
    tolerance = 0.01 + relative * max(float(values.abs().max()) for values in stored)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, stored, strict=True))
    if dpo.reference == "sft" and reference.checkpoint != expected.digest:
        print(
            f"DPO starts at {expected.digest[:16]} with another reference, {reference.checkpoint[:16]}: loss {loss:.4f}, margin "
            f"{margin:.4f}, on {len(pairs)} pairs"
        )
        return
    if worst > tolerance or reference.checkpoint != expected.digest:
        raise UserError(
            f"DPO does not start at its reference: log-probabilities differ by up to {worst:.4g} nats (rounding explains at most "
            f"{tolerance:.2g}), the loss is {loss:.4f} instead of {math.log(2):.4f}, the margin {margin:.4f} instead of 0. "
            f"Expected the SFT checkpoint {expected.digest[:16]}; the reference was scored with {reference.checkpoint[:16]}: "
            "score the reference again with the checkpoint that DPO starts from"
        )
    print(f"DPO starts at {expected.digest[:16]}: loss {loss:.4f} (ln 2), margin {margin:.4f}, on {len(pairs)} pairs")
