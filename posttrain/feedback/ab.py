"""SFT against DPO, judged by people: a page to be sent to them, and what their answers say.

Which side is which follows from the prompt's id: neither the page nor the choices name the models, and a score needs nothing
else.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.errors import UserError
from posttrain.evaluation.generations import Generations
from posttrain.evaluation.judge import WinRate, win_rate
from posttrain.reporting.html import STYLE, paragraph, preformatted

Choice = Literal["left", "right", "tie"]

# The page's own script: it reads which buttons are pressed, and offers that as a file. No text of the data is in it.
SCRIPT = """
const forms = [...document.querySelectorAll("form[data-id]")];
function count() {
  const done = forms.filter(form => new FormData(form).get("choice")).length;
  document.getElementById("done").textContent = done + " of " + forms.length + " answered";
}
document.addEventListener("change", count);
document.getElementById("save").addEventListener("click", () => {
  const choices = {};
  for (const form of forms) {
    const choice = new FormData(form).get("choice");
    if (choice) choices[form.dataset.id] = choice;
  }
  const answers = JSON.stringify({answers: document.body.dataset.answers, choices: choices}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([answers], {type: "application/json"}));
  link.download = "choices.json";
  link.click();
});
count();
"""


class Choices(BaseModel):
    """What one person chose."""

    model_config = ConfigDict(extra="forbid")

    answers: str
    """Digest of the answers that were judged."""
    choices: dict[str, Choice]
    """By exchange."""


def ab_page(generations: Generations) -> str:
    """A page that asks which of two answers is better, sides shuffled and models unnamed; it works from a file.

    Raises:
        UserError: there are no two answers to choose from.
    """
    contests = [exchange for exchange in generations.exchanges if {"sft", "dpo"} <= exchange.responses.keys()]
    if not contests:
        raise UserError(
            "the run has no answers of both SFT and DPO: raise evaluation.generations.n, and run both stages"
        )
    forms = []
    for exchange in contests:
        left, right = ("dpo", "sft") if dpo_is_left(exchange.id) else ("sft", "dpo")
        turns = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in exchange.prompt)
        buttons = "".join(
            f'<label><input type="radio" name="choice" value="{value}"> {label}</label> '
            for value, label in (("left", "left is better"), ("tie", "no difference"), ("right", "right is better"))
        )
        answers = "".join(f"<div>{preformatted(exchange.responses[stage].text)}</div>" for stage in (left, right))
        asked = f'{preformatted(turns)}<div class="pair">{answers}</div><p>{buttons}</p>'
        forms.append(f'<form data-id="{escape(exchange.id)}">{asked}</form><hr>')
    style = f"{STYLE} .pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }}"
    title = "Which answer is better?"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    hint = paragraph("Read the prompt, then both answers. Choose the one that you would rather have got.")
    save = '<p><button id="save">Save my choices</button> <span id="done"></span></p>'
    body = f"<h1>{title}</h1>{hint}{''.join(forms)}{save}<script>{SCRIPT}</script>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body data-answers="{digest(generations)}">{body}</body></html>\n'


def ab_score(generations: Generations, files: Sequence[Path], confidence: float = 0.95) -> WinRate:
    """How often people preferred DPO's answer. A prompt that several people judged counts once, by their mean.

    Raises:
        UserError: a file holds no choices, or choices between other answers.
    """
    scores: defaultdict[str, list[float]] = defaultdict(list)
    known = {exchange.id for exchange in generations.exchanges}
    for file in files:
        try:
            found = Choices.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(f"{file}: holds no choices: take the file that the page's button saves") from error
        if found.answers != digest(generations) or not found.choices.keys() <= known:
            raise UserError(f"{file}: was made with the page of another run: name that run")
        for name, choice in found.choices.items():
            scores[name].append(0.5 if choice == "tie" else float((choice == "left") == dpo_is_left(name)))
    if not scores:
        raise UserError(f"{', '.join(map(str, files))}: nothing was chosen: ask for answers")
    return win_rate([sum(found) / len(found) for found in scores.values()], confidence)


def dpo_is_left(exchange: str) -> bool:
    """On which side DPO's answer stands: as a coin falls, and the same for ever."""
    return hashlib.sha256(f"ab {exchange}".encode()).digest()[0] % 2 == 0


def digest(generations: Generations) -> str:
    """sha256 of all answers."""
    texts = [[e.id, {stage: response.text for stage, response in e.responses.items()}] for e in generations.exchanges]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
