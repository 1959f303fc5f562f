"""The built-in demo data: a support desk with a known reward for its replies.

A customer describes a fault and the desk replies. `reward` rates a reply by the correct fix, courtesy and brevity. Labels are
sampled from the rewards of two replies with the Bradley-Terry model. So some labels are wrong, the best possible accuracy on
them is known (`ceiling`), and models can also be compared with the true preference (`true_margin`).

The desk most often says "turn it off and on again", whatever the fault. So imitating its replies (SFT) teaches little about the
correct fix, and preferences (DPO) are needed.

`rows` includes defective rows, as in real exports, that the data checks must find.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from itertools import islice, product
from typing import Any

Pair = tuple[str, str, str]
Row = tuple[str, str, str | None]
"""Prompt, chosen and rejected. In a defective `Row`, rejected may be None."""

SEED = 20
"""The seed gives the same rows on any platform."""
N_PROMPTS = 4000
PLANTED = {"duplicate": 40, "conflicting": 60, "empty": 25, "identical": 20, "overlong": 10, "not_text": 5}
"""Number of rows that the loader must drop, by reason. A pair and its copy with swapped labels count as two."""
OVERLONG_CHARS = 60_000
N_ROWS = N_PROMPTS + PLANTED["duplicate"] + PLANTED["conflicting"] // 2

CORRECT_FIX, COURTESY, PER_WORD = 3.0, 1.0, -0.15
"""Rewards: naming the correct fix and no other; courtesy (curtness costs as much); each word."""
MIN_MARGIN = 0.5
"""Minimum difference in reward between two paired replies."""
P_ANSWERS = (0.4, 0.45, 0.15)
"""Probabilities of naming the correct fix, the habit, and a random fix."""

FIXES = {
    "charge it for two hours": ("does not turn on", "stays dark"),
    "move it closer to the router": ("loses the network", "cannot find the internet"),
    "unplug it until it is cool": ("gets very hot", "smells of warm plastic"),
    "tighten the screws at the back": ("rattles", "makes a grinding noise"),
    "set the time zone again": ("shows the wrong date", "is an hour late"),
    "install the latest update": ("flashes an error", "blinks red"),
    "send it back with the free label": ("arrived with a crack", "was broken in the box"),
    "ask your bank to return one payment": ("was charged twice", "is on my bill two times"),
    "enter the code from the sticker": ("asks for a password", "is locked"),
    "choose your language in the menu": ("speaks French", "greets me in Spanish"),
}
"""Each fix and the complaints for which it is correct."""
HABIT = "turn it off and on again"

GREETINGS = ("Hello", "Hi", "Good morning")
NAMES = (
    "Ada", "Ben", "Cleo", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jana",
    "Karl", "Lena", "Milo", "Nora", "Otto", "Pia", "Rosa", "Sven", "Tara", "Uwe",
)  # fmt: skip
PRODUCTS = (
    "printer", "tablet", "speaker", "camera", "headset", "keyboard",
    "monitor", "phone", "watch", "radio", "scanner", "laptop",
)  # fmt: skip
COURTEOUS = ("Sorry for the trouble.", "Thank you for telling us.", "We are glad to help.")
CURT = ("As the manual clearly says.", "You should have known this.", "This is not our problem.")
ADVICE = ("Please", "You can", "It helps to")
SMALL_TALK = (
    "We are open until Friday.",
    "Many customers wrote this week.",
    "Your message has a number.",
)


def rows() -> Iterator[dict[str, Any]]:
    """Yield the raw rows, including defective ones, in a fixed order: `prompt`, `chosen`, `rejected` and `true_margin`.

    `true_margin` is the reward of chosen minus that of rejected: below 0 if the label is wrong, None if rejected is missing. The
    prompts of clean rows are unique, even without the order numbers.
    """
    rng = random.Random(SEED)
    complaints = [complaint for all_wordings in FIXES.values() for complaint in all_wordings]
    scenes = rng.sample(list(product(GREETINGS, NAMES, PRODUCTS, complaints)), N_PROMPTS)
    pairs: list[Pair] = []
    for greeting, name, thing, complaint in scenes:
        prompt = f"{greeting}, {name} here. My {thing} {complaint}, order {rng.randrange(1000, 10000)}."
        pairs.append((prompt, *_draw_labelled(rng, prompt)))
    raw = _plant_defects(pairs)
    rng.shuffle(raw)
    for prompt, chosen, rejected in raw:
        margin = None if rejected is None else reward(prompt, chosen) - reward(prompt, rejected)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "true_margin": margin}


def reward(prompt: str, response: str) -> float:
    """Return the hidden reward of a response, in nats of log-odds.

    3 for naming the correct fix for the complaint and no other, 1 for courtesy, -1 for curtness, -0.15 per word.
    """
    named = [fix for fix in FIXES if fix in response]
    correct = named == [_correct_fix(prompt)]
    courtesy = any(phrase in response for phrase in COURTEOUS) - any(phrase in response for phrase in CURT)
    return CORRECT_FIX * correct + COURTESY * courtesy + PER_WORD * len(response.split())


def ceiling(true_margins: Iterable[float]) -> float:
    """Return the best expected accuracy of any model on labels from the Bradley-Terry model: mean of sigmoid(|margin|)."""
    best = [_sigmoid(abs(margin)) for margin in true_margins]
    return sum(best) / len(best)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _correct_fix(prompt: str) -> str:
    """Return the fix for the complaint in the prompt; empty if there is none."""
    return next((fix for fix, complaints in FIXES.items() if any(words in prompt for words in complaints)), "")


def _draw_labelled(rng: random.Random, prompt: str) -> tuple[str, str]:
    """Return two replies as (chosen, rejected). The first is chosen with probability sigmoid(its margin)."""
    while True:
        first, second = _draw_reply(rng, prompt), _draw_reply(rng, prompt)
        margin = reward(prompt, first) - reward(prompt, second)
        if abs(margin) >= MIN_MARGIN:
            return (first, second) if rng.random() < _sigmoid(margin) else (second, first)


def _draw_reply(rng: random.Random, prompt: str) -> str:
    """Return a reply: a courteous, curt or no opening, a fix or the habit, and up to two sentences of small talk."""
    answers = (_correct_fix(prompt), HABIT, rng.choice(tuple(FIXES)))
    [answer] = rng.choices(answers, P_ANSWERS)
    opening = rng.choice((*COURTEOUS, *CURT, "", "", ""))
    idle = rng.sample(SMALL_TALK, rng.randrange(3))
    return " ".join([opening, f"{rng.choice(ADVICE)} {answer}.", *idle]).strip()


def _plant_defects(pairs: list[Pair]) -> list[Row]:
    """Return the pairs with the defects in `PLANTED` added. Each defective row has exactly one defect."""
    untouched = iter(pairs)
    raw: list[Row] = []
    for pair in islice(untouched, PLANTED["duplicate"]):
        raw += [pair, pair]
    for prompt, chosen, rejected in islice(untouched, PLANTED["conflicting"] // 2):
        raw += [(prompt, chosen, rejected), (prompt, rejected, chosen)]
    raw += [(prompt, chosen, " ") for prompt, chosen, _ in islice(untouched, PLANTED["empty"])]
    raw += [(prompt, chosen, chosen) for prompt, chosen, _ in islice(untouched, PLANTED["identical"])]
    for prompt, chosen, rejected in islice(untouched, PLANTED["overlong"]):
        raw.append((prompt, chosen, f"{rejected} " * (OVERLONG_CHARS // len(rejected))))
    raw += [(prompt, chosen, None) for prompt, chosen, _ in islice(untouched, PLANTED["not_text"])]
    return [*raw, *untouched]
