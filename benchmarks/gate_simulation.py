"""Error rates of the verdict on simulated truth: `python -m benchmarks.gate_simulation` prints the tables of verdict-errors.md.

Every rate is that of the functions that decide in the product. Only the rows that they decide on are drawn here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit

from posttrain.config import EvaluationSection, GateSection
from posttrain.evaluation.answers.judge import win_rate
from posttrain.evaluation.calibration import calibrate
from posttrain.evaluation.clustered.gains import paired_gain
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import Figures, Slice
from posttrain.evaluation.gate.looks import Look, look_level, shrunken_gain
from posttrain.evaluation.intervals import Estimate, bootstrap_mean, cluster_share

SECTION = EvaluationSection(n_bootstrap=500)
LEVEL = 0.05
DISCORDANCE = 0.1
"""Share of pairs on which two equally good models differ."""


@dataclass(frozen=True)
class Shape:
    """A test set."""

    n_pairs: int
    per_prompt: int
    """Number of pairs of each prompt."""
    icc: float
    """Correlation of two pairs of one prompt."""

    @property
    def clusters(self) -> Clusters:
        """Prompts of the pairs."""
        return Clusters(np.arange(self.n_pairs) // self.per_prompt, self.n_pairs // self.per_prompt)


def draw(shape: Shape, values: list[float], chances: list[float], generator: np.random.Generator) -> np.ndarray:
    """Return correlated values: each pair has that of its prompt with a probability of sqrt(icc), or else its own."""
    own, shared = (generator.choice(values, n, p=chances) for n in (shape.n_pairs, shape.clusters.n))
    takes_shared = generator.random(shape.n_pairs) < shape.icc**0.5
    found: np.ndarray = np.where(takes_shared, shared[shape.clusters.index], own)
    return found


def false_promotions(shape: Shape, n: int, seed: int = 0) -> tuple[float, float, float]:
    """Return the rate of false promotions of an equal model, and the coverage of the intervals of gains and accuracies."""
    generator, half = np.random.default_rng(seed), DISCORDANCE / 2
    promoted = covered = shares = 0
    for _ in range(n):
        gain = paired_gain(draw(shape, [1, 0, -1], [half, 1 - 2 * half, half], generator), shape.clusters, 1 - LEVEL)
        promoted += gain.value > 0 and gain.p_value <= LEVEL
        covered += gain.low <= 0 <= gain.high
        share = cluster_share(draw(shape, [1, 0], [0.7, 0.3], generator), shape.clusters, 1 - LEVEL)
        shares += share.low <= 0.7 <= share.high
    return promoted / n, covered / n, shares / n


def coverage(estimate: Callable[[np.random.Generator], Estimate], truth: float, n: int, seed: int = 0) -> float:
    """Return how often the interval of an estimate contains the truth."""
    generator = np.random.default_rng(seed)
    found = [estimate(generator) for _ in range(n)]
    return float(np.mean([interval.low <= truth <= interval.high for interval in found]))


def skewed_mean(generator: np.random.Generator) -> Estimate:
    """Return the mean of 128 log-normal values, as skewed as KL is."""
    return bootstrap_mean(generator.lognormal(0, 1, 128), SECTION)


def win_rate_of_halves(generator: np.random.Generator) -> Estimate:
    """Return the win rate of 64 answers, of which most tie."""
    return win_rate(generator.choice([0, 0.5, 1], 64, p=[0.15, 0.6, 0.25]).tolist(), 1 - LEVEL).share


def calibrated(generator: np.random.Generator) -> Estimate:
    """Return the calibration error of a perfectly calibrated model on 400 pairs."""
    chances = generator.uniform(0.05, 0.95, 400)
    right = generator.random(400) < np.maximum(chances, 1 - chances)
    odds = np.abs(logit(chances)) * np.where(right, 1, -1)
    return calibrate(odds, EvaluationSection(n_bootstrap=100)).ece


def slice_alarms(n_slices: int, n: int, seed: int = 0) -> float:
    """Return how often a slice of equally good models is found to be worse."""
    generator, alarms = np.random.default_rng(seed), 0
    alone, half = Clusters.single(40), DISCORDANCE / 2
    for _ in range(n):
        drawn = generator.choice([1.0, 0.0, -1.0], (n_slices, 40), p=[half, 1 - 2 * half, half])
        gains = [paired_gain(found, alone, 1 - LEVEL) for found in drawn]
        fields: list[dict[str, Any]] = [{"n_pairs": 40, "gains": {"dpo_vs_sft": gain}} for gain in gains]
        parts = [Slice.model_construct(**one) for one in fields]
        used: dict[str, Any] = {"slices": parts, "confidence": 1 - LEVEL}
        alarms += bool(Figures.model_construct(**used).worse_slices("dpo_vs_sft", 0, 20))
    return alarms / n


@dataclass(frozen=True)
class Challengers:
    """True levels of the models of a year, in points above the first champion, and the pairs that judge them."""

    mean: float = 0.0
    spread: float = 0.0
    builds_on_champion: bool = False
    """Whether the levels lie around that of the night's own champion instead of the first one's."""
    n_pairs: int = 2000
    growth: float = 0.0
    """Share of test pairs that each night adds."""


YEARS = {
    "equal": Challengers(),
    "equal, the test set doubles in a year": Challengers(growth=0.0019),
    "equal, the test set grows sixfold in a year": Challengers(growth=0.005),
    "-1 ± 1 points": Challengers(-1, 1),
    "-1 ± 1 points around the night's own champion": Challengers(-1, 1, builds_on_champion=True),
}
PLANNED = {"equal, the test set grows sixfold in a year": (100, 365)}
"""Planned looks of each row: fewer than nights, so that those seen on small shares of the prompts free others."""


@dataclass(frozen=True)
class Year:
    """What a year of nightly challengers on one test set leads to."""

    promoted: float
    """Share of years with a promotion."""
    gain: float
    """Mean true gain of the last champion over the first, in points."""
    quoted: float
    """Mean estimate of the gain of a promoted model, in points."""
    corrected: float
    """Mean of the estimates that are corrected for selection."""
    true: float
    """Mean true gain of the promoted models."""


def nights(gate: GateSection, truth: Challengers, n_years: int, seed: int = 0) -> Year:
    """Simulate years of 365 challengers on a test set that may grow.

    Every model is right on 60 % of the pairs, wrong on 20 %, and right on the rest with the same probability, which decides how
    good it is. So two equal models differ on 10 %. A night without planned looks left promotes nothing. One planned look stands
    for a gate that does not count looks.
    """
    generator, level = np.random.default_rng(seed), look_level(gate)
    ends, years, found = [], 0, []
    for _ in range(n_years):
        champion, best, any_promoted, judged = np.empty(0, dtype=bool), 0.0, False, 0.0
        for night in range(365):
            n_pairs = round(truth.n_pairs * (1 + truth.growth) ** night)
            n_open = n_pairs // 5
            added = n_open - len(champion)
            champion = np.append(champion, generator.random(added) < _chance(best))
            level_of_model = truth.mean + truth.spread * generator.standard_normal() + best * truth.builds_on_champion
            if gate.planned_looks > 1 and not Look(used=judged / n_pairs / gate.planned_looks).is_within(gate):
                continue
            judged += n_pairs  # of these, a share of n_pairs / (pairs of a later night) is seen again then
            right = generator.random(n_open) < _chance(level_of_model)
            difference = right.astype(float) - champion
            if difference.sum() < 1.9 * np.sqrt(np.abs(difference).sum()):
                continue  # p is above 0.05
            gain = paired_gain(np.append(difference, np.zeros(n_pairs - n_open)), Clusters.single(n_pairs), 1 - LEVEL)
            if gain.p_value <= level:
                found.append((100 * gain.value, 100 * shrunken_gain(gain, level), level_of_model - best))
                champion, best, any_promoted = right, level_of_model, True
        ends.append(best)
        years += any_promoted
    quoted, corrected, true = np.mean(found, axis=0) if found else (0.0, 0.0, 0.0)
    return Year(years / n_years, float(np.mean(ends)), float(quoted), float(corrected), float(true))


def _chance(points: float) -> float:
    """Return the probability of being right on an open pair, of a model that many points above the first champion."""
    return float(np.clip(0.5 + points / 100 * 5, 0, 1))


def main(scale: float = 1.0) -> None:
    """Print all tables.

    Args:
        scale: of the numbers of simulations.
    """
    n = int(1000 * scale)
    print("| pairs | pairs a prompt | prompts | ICC | false promotions | coverage, gain | coverage, accuracy |")
    print("|---|---|---|---|---|---|---|")
    for icc in (0.3, 0.8):
        for n_pairs in (400, 2000):
            for per_prompt in (1, 2, 5, 20):
                shape = Shape(n_pairs, per_prompt, icc)
                rates = " | ".join(f"{100 * rate:.1f} %" for rate in false_promotions(shape, n))
                print(f"| {n_pairs} | {per_prompt} | {shape.clusters.n} | {icc} | {rates} |", flush=True)
    print(f"\nSkewed mean, n = 128: coverage {coverage(skewed_mean, np.exp(0.5), n):.1%}")
    print(f"Win rate of mostly ties, n = 64: coverage {coverage(win_rate_of_halves, 0.55, n):.1%}")
    generator = np.random.default_rng(0)
    errors = [calibrated(generator) for _ in range(n)]
    shown, contains = np.mean([e.value for e in errors]), np.mean([e.low == 0 for e in errors])
    print(f"Calibrated model, n = 400: mean error {shown:.1%}, interval contains 0 in {contains:.1%}")
    print(f"100 slices of equal models: {slice_alarms(100, n // 2):.1%} of runs with an alarm", flush=True)
    print("\n| nights | rule | years with a promotion | true gain a year | quoted | corrected | true |")
    print("|---|---|---|---|---|---|---|")
    for name, truth in YEARS.items():
        for planned in PLANNED.get(name, (1, 365)):
            print(_row(name, truth, planned, n), flush=True)


def _row(name: str, truth: Challengers, planned: int, n_years: int) -> str:
    """Return a line of the table of years."""
    gate = GateSection(planned_looks=planned)
    year = nights(gate, truth, n_years)
    figures = " | ".join(f"{f:+.2f}" for f in (year.gain, year.quoted, year.corrected, year.true))
    return f"| {name} | planned_looks {planned} | {100 * year.promoted:.1f} % | {figures} |"


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
