"""The built-in demo: a small support desk whose customers' true preferences are known.

A customer describes a fault, the desk replies. What a reply is worth is `reward`: the correct fix, courtesy, brevity.
Which of two replies is labelled better is drawn from their rewards by Bradley-Terry. So some labels are wrong, the best
possible accuracy on them is known (`ceiling`), and a model can be held against the true preference (`true_margin`) too.

What makes this a lesson in preferences, not in imitation, is the desk's habit: more often than the correct fix it says
"turn it off and on again", whatever the fault. So imitating even its better replies teaches little about what is right.

`rows` also holds planted dirt, such as real exports have, for the data report to find.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from itertools import islice, product
from typing import Any

Pair = tuple[str, str, str]
Row = tuple[str, str, str | None]
"""Prompt, chosen and rejected; in a row, which may be dirty, the last may be missing."""

SEED = 20
"""Decides every row: the same seed gives the same rows on any platform."""
N_PROMPTS = 4000
PLANTED = {"duplicate": 40, "conflicting": 60, "empty": 25, "identical": 20, "overlong": 10, "not_text": 5}
"""Rows that a loader has to drop, by reason. A pair that is also there with its labels swapped is two such rows."""
OVERLONG_CHARS = 60_000
N_ROWS = N_PROMPTS + PLANTED["duplicate"] + PLANTED["conflicting"] // 2

CORRECT_FIX, COURTESY, PER_WORD = 3.0, 1.0, -0.15
"""The reward of the correct fix and no other; of a courteous reply (a curt one loses as much); of each word."""
MIN_MARGIN = 0.5
"""Replies closer than this in reward are never paired: nobody could tell which is better."""
P_ANSWERS = (0.4, 0.45, 0.15)
"""How often the desk names the correct fix, its habit, or some fix at random."""

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
"""Each fix, and the complaints it is the correct answer to."""
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
    """The raw rows, dirt included, in a fixed order: `prompt`, `chosen` and `rejected` as text, and `true_margin`.

    `true_margin` is the reward of chosen minus that of rejected, so it is below 0 where the label is wrong; None where
    rejected is missing. No two clean rows share a prompt, nor would they without the order numbers.
    """
    rng = random.Random(SEED)
    complaints = [complaint for all_wordings in FIXES.values() for complaint in all_wordings]
    scenes = rng.sample(list(product(GREETINGS, NAMES, PRODUCTS, complaints)), N_PROMPTS)
    pairs: list[Pair] = []
    for greeting, name, thing, complaint in scenes:
        prompt = f"{greeting}, {name} here. My {thing} {complaint}, order {rng.randrange(1000, 10000)}."
        pairs.append((prompt, *_draw_labelled(rng, prompt)))
    dirty = _plant_dirt(pairs)
    rng.shuffle(dirty)
    for prompt, chosen, rejected in dirty:
        margin = None if rejected is None else reward(prompt, chosen) - reward(prompt, rejected)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "true_margin": margin}


def reward(prompt: str, response: str) -> float:
    """What a response is worth to the customer: the hidden reward, in nats of log-odds, of any text.

    3 for naming the fix that the prompt's complaint needs and no other, 1 for courtesy, -1 for curtness, -0.15 a word.
    """
    named = [fix for fix in FIXES if fix in response]
    correct = named == [_correct_fix(prompt)]
    courtesy = any(phrase in response for phrase in COURTEOUS) - any(phrase in response for phrase in CURT)
    return CORRECT_FIX * correct + COURTESY * courtesy + PER_WORD * len(response.split())


def ceiling(true_margins: Iterable[float]) -> float:
    """The best accuracy to be expected of any model on pairs labelled by Bradley-Terry: mean of sigmoid(|margin|)."""
    best = [_sigmoid(abs(margin)) for margin in true_margins]
    return sum(best) / len(best)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _correct_fix(prompt: str) -> str:
    """The fix for the complaint in the prompt; empty where there is none that this desk knows."""
    return next((fix for fix, complaints in FIXES.items() if any(words in prompt for words in complaints)), "")


def _draw_labelled(rng: random.Random, prompt: str) -> tuple[str, str]:
    """Two replies to the prompt as (chosen, rejected): the first is chosen with probability sigmoid(its margin)."""
    while True:
        first, second = _draw_reply(rng, prompt), _draw_reply(rng, prompt)
        margin = reward(prompt, first) - reward(prompt, second)
        if abs(margin) >= MIN_MARGIN:
            return (first, second) if rng.random() < _sigmoid(margin) else (second, first)


def _draw_reply(rng: random.Random, prompt: str) -> str:
    """What the desk might say: a courteous, curt or no opening, a fix or the habit, up to two idle sentences."""
    answers = (_correct_fix(prompt), HABIT, rng.choice(tuple(FIXES)))
    [answer] = rng.choices(answers, P_ANSWERS)
    opening = rng.choice((*COURTEOUS, *CURT, "", "", ""))
    idle = rng.sample(SMALL_TALK, rng.randrange(3))
    return " ".join([opening, f"{rng.choice(ADVICE)} {answer}.", *idle]).strip()


def _plant_dirt(pairs: list[Pair]) -> list[Row]:
    """The pairs with `PLANTED` among them. No pair is touched twice, so a dirty row has exactly one fault."""
    untouched = iter(pairs)
    dirty: list[Row] = []
    for pair in islice(untouched, PLANTED["duplicate"]):
        dirty += [pair, pair]
    for prompt, chosen, rejected in islice(untouched, PLANTED["conflicting"] // 2):
        dirty += [(prompt, chosen, rejected), (prompt, rejected, chosen)]
    dirty += [(prompt, chosen, " ") for prompt, chosen, _ in islice(untouched, PLANTED["empty"])]
    dirty += [(prompt, chosen, chosen) for prompt, chosen, _ in islice(untouched, PLANTED["identical"])]
    for prompt, chosen, rejected in islice(untouched, PLANTED["overlong"]):
        dirty.append((prompt, chosen, f"{rejected} " * (OVERLONG_CHARS // len(rejected))))
    dirty += [(prompt, chosen, None) for prompt, chosen, _ in islice(untouched, PLANTED["not_text"])]
    return [*dirty, *untouched]
