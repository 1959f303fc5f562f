"""Send the same prompt to several models and stream their answers side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from transformers import TextStreamer

from posttrain.chat.template import Chat, Messages
from posttrain.config import ModelSection
from posttrain.evaluation.answers.generations import generation_config
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import Model, load_chat, load_model
from posttrain.models.precision import autocast


@dataclass
class Speaker:
    """A model and its conversation."""

    name: str
    model: Model
    chat: Chat
    section: ModelSection
    messages: Messages = field(default_factory=list)
    answer: str = ""
    """The part of the current answer that has been generated."""


def load_speaker(name: str, checkpoint: Checkpoint, section: ModelSection) -> Speaker:
    """Load a checkpoint for a conversation."""
    full = checkpoint.manifest.kind == "full"
    base = checkpoint.manifest.base if full else resolve_base(section)
    return Speaker(
        name, load_model(base, section, checkpoint, frozen=True).eval(), load_chat(base, section, checkpoint), section
    )


def converse(
    speakers: Sequence[Speaker], prompts: Iterable[str], console: Console, *, max_new_tokens: int, temperature: float
) -> None:
    """Send each prompt to every model; each model sees only its own answers.

    On a terminal the answers are streamed side by side; elsewhere each is printed when it is complete.
    """
    for prompt in prompts:
        for speaker in speakers:
            speaker.messages.append({"role": "user", "content": prompt})
            speaker.answer = ""
        with ThreadPoolExecutor(len(speakers)) as pool:
            answers = [pool.submit(answer, speaker, max_new_tokens, temperature) for speaker in speakers]
            if console.is_terminal:
                with Live(
                    get_renderable=lambda: _columns(speakers, console.width), console=console, refresh_per_second=10
                ):
                    for done in answers:
                        done.result()
            for speaker, done in zip(speakers, answers, strict=True):
                text = done.result()
                if not console.is_terminal:
                    console.print(Text(f"{speaker.name}: {text}"), soft_wrap=True)
        for speaker in speakers:
            speaker.messages.append({"role": "assistant", "content": speaker.answer})


def answer(speaker: Speaker, max_new_tokens: int, temperature: float) -> str:
    """Return a model's answer to its conversation; `speaker.answer` holds the part that has been generated."""
    chat = speaker.chat
    rendered = chat.tokenizer.apply_chat_template(
        speaker.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    speaker.model.generation_config = generation_config(chat, max_new_tokens, temperature)
    with torch.no_grad(), autocast(speaker.section):
        speaker.model.generate(**rendered.to(speaker.model.device), streamer=_Growing(speaker))
    speaker.answer = speaker.answer.strip()
    return speaker.answer


class _Growing(TextStreamer):
    """Appends to a speaker's answer, word by word."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__(speaker.chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._speaker = speaker

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._speaker.answer += text


def _columns(speakers: Sequence[Speaker], width: int) -> Columns:
    each = max(20, (width - 1) // len(speakers) - 1)
    return Columns([Panel(Text(speaker.answer), title=Text(speaker.name), width=each) for speaker in speakers])
