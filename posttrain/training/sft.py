"""Supervised fine-tuning with TRL's SFTTrainer, on completion tokens only."""

from __future__ import annotations

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from posttrain.chat.template import Chat
from posttrain.chat.tokenise import tokenise_completions
from posttrain.config import SftSection
from posttrain.data.preferences import Instructions, Preferences
from posttrain.errors import UserError
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.training.launcher import on_processes
from posttrain.training.resume.resumable_trainer import ResumableTrainer
from posttrain.training.trainer import TrainingJob, train_and_seal, training_arguments, use_flat_rows

N_CHECKED = 100
"""Rows whose stop token is looked at before the first update."""


def train_sft(
    preferences: Preferences, instructions: Instructions | None, sft: SftSection, stage: TrainingJob
) -> Checkpoint:
    """The base after supervised fine-tuning.

    Args:
        preferences: where `instructions` is None, SFT learns the chosen responses of the training split; the chosen
            responses of the validation split are watched in any case.
        instructions: a separate instruction set to learn instead.

    Raises:
        UserError: the loss is not a number, or responses carry no stop token, so generation would never end.
    """
    return on_processes(sft, _train, preferences, instructions, stage=stage)


class CompletionTrainer(ResumableTrainer, SFTTrainer):
    """TRL's trainer, which can be cut off."""


def _train(
    sft: SftSection, preferences: Preferences, instructions: Instructions | None, stage: TrainingJob
) -> Checkpoint:
    set_seed(stage.seed)  # of an adapter's first weights; the trainer, which sets it again, comes after them
    chat = load_chat(stage.base, stage.model)
    train_rows = instructions.rows if instructions is not None else _chosen(preferences.train)
    train = tokenise_completions(chat, train_rows, sft.max_length)
    validation = tokenise_completions(chat, _chosen(preferences.validation), sft.max_length)
    has_validation = len(validation.rows) > 0
    model = load_model(stage.base, stage.model, trainable=True)
    arguments = training_arguments(sft, stage, model, has_validation)
    trainer = CompletionTrainer(
        model=model,
        args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=train.rows,
        eval_dataset=validation.rows if has_validation else None,
        processing_class=chat.tokenizer,
        callbacks=list(stage.callbacks),
    )
    batches = use_flat_rows(trainer, stage.model)
    check_stop_tokens(chat, train.rows.select(range(min(N_CHECKED, len(train.rows)))), sft.max_length)
    facts = {"n_rows": len(train.rows), **{f"n_{name}": count for name, count in train.counts.items()}}
    return train_and_seal(trainer, chat, stage, "sft", None, facts, batches)


def check_stop_tokens(chat: Chat, rows: Dataset, max_length: int) -> None:
    """Refuses rows in which a whole response does not end in the stop token, or has it masked.

    Raises:
        UserError: with the last tokens of the first such row.
    """
    for row in rows:
        length = 1 + max(i for i, label in enumerate(row["labels"]) if label != -100)
        if length < max_length and row["labels"][length - 1] != chat.stop_id:
            tail = chat.tokenizer.decode(row["input_ids"][max(0, length - 10) : length])
            raise UserError(
                f"SFT: a response ends in {tail!r} without the stop token {chat.tokenizer.decode([chat.stop_id])!r}, so the "
                "model would never stop: choose a chat_template that ends an assistant's turn"
            )


def _chosen(rows: Dataset) -> Dataset:
    """Preference rows as instructions: the prompt and its chosen response."""
    names = [name for name in ("id", "source", "tools", "prompt", "chosen") if name in rows.column_names]
    return rows.select_columns(names).rename_column("chosen", "completion")
