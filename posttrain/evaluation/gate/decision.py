"""Decides whether a model is promoted to production, and gives the reasons."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from posttrain.config import GateSection
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.answer_conditions import answer_conditions
from posttrain.evaluation.gate.benchmark_conditions import benchmark_conditions
from posttrain.evaluation.gate.better_answers import judge_answers
from posttrain.evaluation.gate.foresight import power
from posttrain.evaluation.gate.length_conditions import length_conditions
from posttrain.evaluation.gate.looks import Look, look_level, shrunken_gain
from posttrain.evaluation.gate.ranking_conditions import finding_conditions, ranking_conditions, slice_conditions
from posttrain.evaluation.gate.regression_conditions import forgetting_conditions, set_conditions
from posttrain.evaluation.labels import NAMES, point_range, sample_size


class Promotion(BaseModel):
    """The decision about a model and its reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    opponent: str
    """The model it was compared with: `champion`, `sft` or `base`."""
    reasons: list[str]
    """The comparison first, then each condition that the model does not meet."""


def decide(
    figures: Figures,
    gate: GateSection,
    generations: Generations | None = None,
    look: Look | None = None,
    benchmarks: BenchmarkFigures | None = None,
) -> Promotion:
    """Return whether the newest model is promoted, and why.

    It is promoted if it beats its opponent beyond what length explains (`gate.decide_by: answers`: in its answers), no slice,
    benchmark or set got worse, nor did its answers, and no finding blocks it. The opponent is the champion, or, if there is none,
    the previous stage of the same run.

    Args:
        look: at the test prompts; None if it is the first one.
    """
    look, level = look or Look(), look_level(gate)
    newer, older = figures.newest, figures.opponent
    comparison = figures.comparisons[f"{newer}_vs_{older}"]
    gain = comparison.gain
    evidence = (
        f"{NAMES[newer]} ranks {abs(100 * gain.value):.1f} points {'fewer' if gain.value < 0 else 'more'} test pairs correctly "
        f"than {NAMES[older]} ({point_range(gain)}, p = {comparison.p_value:.2g}, {sample_size(figures)}; {power(gain, gate)})"
    )
    if gate.decide_by == "answers":
        first, against = judge_answers(generations, comparison, (newer, older), gate, (look, level))
    else:
        first, against = (
            [],
            [
                *ranking_conditions(comparison, gate, look, level),
                *length_conditions(figures, f"{newer}_vs_{older}", gate),
            ],
        )
    against += [
        *slice_conditions(figures, f"{newer}_vs_{older}", gate),
        *set_conditions(figures, f"{newer}_vs_{older}", gate),
        *(benchmark_conditions(benchmarks, newer, older, gate) if benchmarks else ()),
        *forgetting_conditions(figures, gate),
        *(answer_conditions(generations, newer, older, gate) if generations else ()),
        *finding_conditions(figures, gate),
    ]
    if not against and gate.decide_by == "ranking":
        evidence += (
            f". The gain is selected, as it was promoted for being large: corrected for this, it is "
            f"{100 * shrunken_gain(gain, level):+.1f} points"
        )
    return Promotion(promoted=not against, opponent=older, reasons=[*first, evidence, *against])
