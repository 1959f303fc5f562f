"""Decides by the answers that models write instead of by how they rank pairs (`gate.decide_by: answers`)."""

from __future__ import annotations

from posttrain.config import GateSection
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.figures import Comparison
from posttrain.evaluation.gate.looks import Look
from posttrain.evaluation.gate.ranking_conditions import used_up
from posttrain.evaluation.labels import NAMES, percent, point_range


def judge_answers(
    generations: Generations | None,
    ranking: Comparison,
    stages: tuple[str, str],
    gate: GateSection,
    look: tuple[Look, float],
) -> tuple[list[str], list[str]]:
    """Return the comparison of the answers in words, and why they are not surely better.

    The win rate must be above one half with a p-value of at most the level of the look, and the ranking accuracy must not have
    fallen by more than `max_slice_loss` for sure.

    Args:
        ranking: of the two models on the test pairs.
        stages: the newer and the older model.
        look: at the test prompts, and its level.
    """
    (newer, older), (this, level) = stages, look
    comparison = generations.comparisons.get(f"{newer}_vs_{older}") if generations else None
    rates = list(comparison.win_rates.items()) if comparison else []
    if not rates:
        return [], [
            f"there are no judged answers of {NAMES[newer]} and {NAMES[older]}, and gate.decide_by is answers: set "
            "evaluation.generations.n above 0 and evaluation.judge"
        ]
    by, rate = rates[0]
    evidence = (
        f"by {by}, the answers of {NAMES[newer]} win {percent(rate.share)} % of the comparisons with those of {NAMES[older]} "
        f"({rate.n_wins} won, {rate.n_ties} tied, {rate.n_losses} lost, p = {rate.p_value:.2g}, {rate.n_prompts} prompts)"
    )
    against = []
    if rate.n_prompts < gate.min_answers:
        against.append(
            f"too few to tell: {rate.n_prompts} prompts were judged, and gate.min_answers is {gate.min_answers}"
        )
    if not this.is_within(gate):
        against.append(used_up(gate, this))
    elif rate.p_value > level or rate.share.value <= 0.5:
        against.append(
            f"the answers are not surely better: p = {rate.p_value:.2g} is not below {level:.2g} with a win rate above 50 %, the "
            f"level of each of {gate.planned_looks} looks (gate.planned_looks); gate.max_p_value is {gate.max_p_value:g}"
        )
    if (gain := ranking.gain).high < -gate.max_slice_loss:
        against.append(
            f"ranking accuracy fell: {point_range(gain)} points (gate.max_slice_loss allows a loss of "
            f"{100 * gate.max_slice_loss:.1f} points)"
        )
    return [evidence], against
