"""Which gain a test set can detect, in words: before training from assumptions, in a verdict from what was measured."""

from __future__ import annotations

from posttrain.config import GateSection
from posttrain.evaluation.clustered.gains import Gain
from posttrain.evaluation.clustered.power import TYPICAL_DISCORDANCE, detectable_gain, pairs_needed
from posttrain.evaluation.gate.looks import look_level

WANTED_GAIN = 0.02
"""Gain for which the number of prompts is given, unless `gate.min_gain` asks for more."""
TYPICAL_CORRELATION = 0.3
"""Correlation of the pairs of a prompt, assumed before there are models to compare."""


def foresight(n_pairs: int, n_prompts: int, gate: GateSection) -> str:
    """Return which gain a test set will detect, and how many prompts a wanted one needs, before anything is trained."""
    if not n_pairs:
        return "without test pairs there is no verdict"
    pairs_per_prompt = n_pairs / n_prompts
    design_effect = 1 + (pairs_per_prompt - 1) * TYPICAL_CORRELATION
    shown = _in_words(n_pairs, pairs_per_prompt, TYPICAL_DISCORDANCE, design_effect, gate)
    size = f"{n_pairs:,} test pairs" + (f" of {n_prompts:,} prompts" if n_prompts < n_pairs else "")
    if n_prompts < gate.min_prompts:
        return f"{size}: too few to tell, as gate.min_prompts is {gate.min_prompts}"
    return f"{size}: {shown}, if two models differ on {100 * TYPICAL_DISCORDANCE:.0f} % of the pairs"


def power(gain: Gain, gate: GateSection) -> str:
    """Return which gain the test set of a verdict detects, and how many prompts a wanted one needs."""
    discordance = gain.discordance or TYPICAL_DISCORDANCE
    return _in_words(gain.n_pairs, gain.n_pairs / gain.n_prompts, discordance, gain.design_effect, gate)


def _in_words(
    n_pairs: int, pairs_per_prompt: float, discordance: float, design_effect: float, gate: GateSection
) -> str:
    level, wanted = look_level(gate), max(WANTED_GAIN, gate.min_gain)
    detectable = detectable_gain(n_pairs, level, discordance, design_effect)
    n_prompts = round(pairs_needed(wanted, level, discordance, design_effect) / pairs_per_prompt, -1)
    found = f"a gain of {100 * detectable:.1f} points is detected with 80 %"
    return f"{found}, and {100 * wanted:g} points need {n_prompts:,.0f} prompts"
