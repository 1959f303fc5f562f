"""Tries every family with full training and LoRA.

`PYTHONPATH=tests python -m support.family_matrix > docs/model-families.md` writes the documentation page.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.chat.template import Chat
from posttrain.config import EvaluationSection, ModelSection
from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Writer, complete
from posttrain.forward.flat import use_flat_batches
from posttrain.forward.logprobs import score_as_it_is, score_pairs
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Checkpoint, seal
from posttrain.models.loading import load_chat, load_model
from posttrain.models.stored_settings import StoredSettings, remove_randomness
from posttrain.training.saving import Trained, save_trained
from posttrain.training.trial import train_one_step, try_out
from support.families import FAMILIES, N_VOCABULARY, tiny_model

METHODS = ("full", "lora")
EXACT = 1e-3
"""Largest accepted difference, in nats per response of up to 12 tokens."""


@dataclass
class Outcome:
    """What was found for one family and method. Differences are in nats per response."""

    family: str
    method: str
    batches: str = ""
    """`flat`, `padded: REASON` or `refused: REASON`."""
    scores: float = 0.0
    """Scoring against the model's own forward pass, one sequence at a time."""
    start: float = 0.0
    """Log-probabilities in training mode against those in evaluation mode: DPO starts at ln 2 if they agree."""
    answers: float = 0.0
    """Share of answers that differ between a batch and one at a time."""
    saved: float = 0.0
    """The saved and reloaded checkpoint against the trained model."""
    exported: float = 0.0
    """The export, loaded by transformers alone, against the trained model."""

    @property
    def is_right(self) -> bool:
        """Whether the model can be trained and everything agrees."""
        return max(self.scores, self.start, self.saved, self.exported) <= EXACT and self.answers == 0


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 128 words, with a chat template."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(N_VOCABULARY - 3))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %} </s>{% endif %} {% endfor %}"
    )
    return made


def rows() -> Dataset:
    """Return four pairs of different lengths, two of them with the same prompt; all longer than the sliding window."""
    generator = torch.Generator().manual_seed(3)

    def ids(n: int) -> list[int]:
        return torch.randint(3, N_VOCABULARY, (n,), generator=generator).tolist()

    shared = ids(11)
    prompts = [shared, ids(5), shared, ids(17)]
    return Dataset.from_list(
        [
            {"prompt_ids": prompt, "chosen_ids": ids(n), "rejected_ids": ids(m)}
            for prompt, n, m in zip(prompts, (12, 3, 7, 5), (4, 9, 1, 8), strict=True)
        ]
    )


@torch.no_grad()
def own_logps(model: Any, pairs: Dataset) -> torch.Tensor:
    """Return the log-probabilities of the chosen, then the rejected responses, one sequence at a time, without any of our code."""
    model.eval()
    found = []
    for which in ("chosen_ids", "rejected_ids"):
        for prompt, response in zip(pairs["prompt_ids"], pairs[which], strict=True):
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
            logps = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
            found.append(logps.gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(found)


def scored(logps: Any) -> torch.Tensor:
    """Return `PairLogps` as one tensor, in the order of `own_logps`."""
    return torch.cat([torch.from_numpy(logps.chosen_logps), torch.from_numpy(logps.rejected_logps)])


def try_family(family: str, method: str, folder: Path, **changes: Any) -> Outcome:
    """Return what is found for one family and method."""
    outcome, pairs, base_folder = Outcome(family, method), rows(), folder / "base"
    if not base_folder.exists():
        tiny_model(family, **changes).save_pretrained(base_folder)
        tiny_tokenizer().save_pretrained(base_folder)
    section = ModelSection(base=str(base_folder), method=method, precision="fp32")  # type: ignore[arg-type]
    base = resolve_base(section)
    chat = load_chat(base, section)
    try:
        try_out(base, section)
        model = load_model(base, section, trainable=True)
        stored = StoredSettings.of(model)
        expected = own_logps(
            AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32) if method == "full" else model, pairs
        )
        evaluated = scored(score_pairs(model, pairs, section, 60, "scores"))
        outcome.scores = largest(evaluated - expected)
        reason = use_flat_batches(model, section)
        outcome.batches = "flat" if reason is None else f"padded: {reason}"
        remove_randomness(model)
        model.train()
        outcome.start = largest(scored(score_as_it_is(model, pairs, section, 60, "start")) - evaluated)
        train_one_step(model, padded=reason is not None)
    except UserError as error:
        outcome.batches = f"refused: {error}"
        return outcome
    trained = scored(score_pairs(model, pairs, section, 60, "trained"))
    outcome.answers = changed_answers(model, chat, section, pairs)
    checkpoint = _save(Trained(model, chat, base, stored), folder / method)
    again = load_model(base, section, checkpoint)
    outcome.saved = largest(own_logps(again, pairs) - trained)
    merged = again.merge_and_unload(safe_merge=True) if method == "lora" else again
    merged.save_pretrained(folder / f"{method}-export")
    plain = AutoModelForCausalLM.from_pretrained(folder / f"{method}-export", dtype=torch.float32)
    outcome.exported = largest(own_logps(plain, pairs) - trained)
    return outcome


def largest(differences: torch.Tensor) -> float:
    """Return the largest absolute value."""
    return float(differences.abs().max())


def _save(trained: Trained, folder: Path) -> Checkpoint:
    about = {"stage": "sft", "base": trained.base, "parent": None, "template": trained.chat.template, "metrics": {}}
    kind = save_trained(trained, folder)
    return seal(folder, [], kind=kind, stop_ids=trained.chat.stop_ids, **about)


def changed_answers(model: Any, chat: Chat, section: ModelSection, pairs: Dataset) -> float:
    """Return the share of prompts whose greedy answer in a batch is not the one that the model gives to it alone."""
    prompts = list(pairs["prompt_ids"])[1:]
    writer = Writer(model, chat, section)
    settings = EvaluationSection.model_validate({"generations": {"max_new_tokens": 8}})
    together = complete(writer, prompts, settings, "answers")
    alone = [complete(writer, [prompt], settings, "answers")[0] for prompt in prompts]
    return sum(a != b for a, b in zip(together, alone, strict=True)) / len(prompts)


PAGE = """# Model families

Which families of models train, and how their batches are laid out. Each row is a tiny model with random weights: two layers, width
32, sequences longer than its sliding window, in fp32. A family is refused by the preflight, before anything is trained.

- **Batches**: flat (each prompt once, no padding), or padded as in TRL, with the reason.
- **Scores**: log-probabilities of responses against the model's own forward pass, one sequence at a time.
- **Start of DPO**: log-probabilities in training mode against those in evaluation mode. DPO starts at ln 2 if they agree.
- **Answers**: greedy answers in a batch against one prompt at a time.
- **Checkpoint**, **Export**: log-probabilities of the reloaded checkpoint, and of the export in transformers alone, against the
  trained model.

Differences are the largest, in nats per response. `make test-soak` holds all of them below 0.001.

Made by `PYTHONPATH=tests python -m support.family_matrix > docs/model-families.md` on {date}, on 2 cores of an AMD EPYC without
AMX, with transformers {transformers}, TRL {trl} and PEFT {peft}.

{table}"""


def page(outcomes: list[Outcome]) -> str:
    """Return the documentation page."""
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "trl", "peft")}
    return PAGE.format(date=datetime.date.today().isoformat(), table=table(outcomes), **versions)


def table(outcomes: list[Outcome]) -> str:
    """Return the table of the page."""
    lines = [
        "| Family | Method | Batches | Scores | Start of DPO | Answers | Checkpoint | Export |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        if one.batches.startswith("refused"):
            lines.append(
                f"| {one.family} | {one.method} | {one.batches.replace('refused: model.base: ', 'refused: ')} | | | | | |"
            )
            continue
        figures = " | ".join(f"{value:.0e}" for value in (one.scores, one.start))
        answers = "equal" if one.answers == 0 else f"{one.answers:.0%} differ"
        lines.append(
            f"| {one.family} | {one.method} | {one.batches} | {figures} | {answers} | {one.saved:.0e} | {one.exported:.0e} |"
        )
    return "\n".join(lines)


def main(families: list[str]) -> None:
    """Print the page."""
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    for family in families or FAMILIES:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
        ):  # what the library prints
            outcomes += [try_family(family, method, Path(folder)) for method in METHODS]
    sys.stdout.write(page(outcomes) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
