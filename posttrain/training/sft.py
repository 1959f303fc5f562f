"""Supervised fine-tuning with TRL's SFTTrainer, on completion tokens only."""

from __future__ import annotations

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from posttrain.chat.template import Chat
from posttrain.chat.tokens import SftTokens, check_chat
from posttrain.compat.transformers_internals import with_one_gpu
from posttrain.config import SftSection
from posttrain.errors import UserError
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.models.stored_settings import StoredSettings
from posttrain.models.token_ids import check_token_ids
from posttrain.training.launcher import on_processes
from posttrain.training.resume.resumable_trainer import ResumableTrainer
from posttrain.training.splitting import SplittingTrainer
from posttrain.training.stopping import stopping_callbacks
from posttrain.training.trainer import TrainingJob, TrainingSetup, prepare, train_and_seal, training_arguments

N_CHECKED = 100
"""Number of rows whose stop token is checked before the first update."""


def train_sft(tokens: SftTokens, sft: SftSection, job: TrainingJob) -> Checkpoint:
    """Return the base after supervised fine-tuning.

    Args:
        tokens: the training rows, and the validation rows whose loss is logged.

    Raises:
        UserError: the rows were tokenised for another tokenizer or length, the loss is NaN or infinite, or responses have no
            stop token, so that generation would never end.
    """
    return on_processes(sft, _train, tokens, job=job)


class CompletionTrainer(SplittingTrainer, ResumableTrainer, SFTTrainer):
    """TRL's trainer, which can be interrupted and resumed."""


def _train(sft: SftSection, tokens: SftTokens, job: TrainingJob) -> Checkpoint:
    set_seed(job.seed)  # for an adapter's initial weights, which are drawn before the trainer sets the seed
    chat = load_chat(job.base, job.model)
    check_chat(tokens, chat, "the base model")
    if tokens.max_length != sft.max_length:
        raise UserError(
            f"sft.max_length is {sft.max_length}, but the rows were cut to {tokens.max_length} tokens: tokenise them again"
        )
    train, validation = tokens.rows("train"), tokens.rows("validation")
    has_validation = len(validation) > 0
    model = load_model(job.base, job.model, trainable=True)
    arguments = training_arguments(sft, job, model, has_validation)
    stored = StoredSettings.of(model)
    check_token_ids(train, model)
    trainer = CompletionTrainer(
        model=model,
        args=with_one_gpu(SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})),
        train_dataset=train,
        eval_dataset=validation if has_validation else None,
        processing_class=chat.tokenizer,
        callbacks=[*stopping_callbacks(sft, has_validation=has_validation, start=job.start), *job.callbacks],
    )
    batches = prepare(trainer, job.model)
    check_stop_tokens(chat, train.select(range(min(N_CHECKED, len(train)))), sft.max_length)
    counts = {
        "n_rows": len(train),
        "n_validation": len(validation),
        **{f"n_{name}": count for name, count in tokens.cut["train"].items()},
    }
    return train_and_seal(TrainingSetup(trainer, chat, job, "sft", None, counts, batches, stored))


def check_stop_tokens(chat: Chat, rows: Dataset, max_length: int) -> None:
    """Check that every response that was not cut ends in the stop token, and that the stop token is learned.

    Raises:
        UserError: with the last tokens of the first row that does not.
    """
    for row in rows:
        length = 1 + max(i for i, label in enumerate(row["labels"]) if label != -100)
        if length < max_length and row["labels"][length - 1] not in chat.stop_ids:
            tail = chat.tokenizer.decode(row["input_ids"][max(0, length - 10) : length])
            raise UserError(
                f"SFT: a response ends in {tail!r} without the stop token {chat.tokenizer.decode([chat.stop_id])!r}, so the "
                "model would never stop: set model.chat_template to a template that ends the assistant's turn"
            )
