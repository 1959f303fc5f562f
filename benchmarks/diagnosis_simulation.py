"""How often each diagnosis rule reports a problem by chance: `python -m benchmarks.diagnosis_simulation [N]`.

Simulates runs at the limit of each rule, where a false alarm is most likely, or healthy runs where a rule has no such limit, and
passes them to the rules of the library. Writes the table of docs/verdict.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from posttrain.evaluation.diagnosis.evidence import Curves, Evidence, TrainingLog
from posttrain.evaluation.diagnosis.rule_intervals import rate
from posttrain.evaluation.diagnosis.rules import RULES
from posttrain.evaluation.intervals import Estimate, wilson

PAGE = Path(__file__).parent.parent / "docs" / "verdict.md"
MARKS = "<!-- false alarms -->", "<!-- end of false alarms -->"
N_TEST, N_PAIRS, N_VALIDATION, BATCH, N_ANSWERS = 400, 3200, 100, 16, 64
LEVEL = 0.95
NO_DATA: Any = SimpleNamespace(
    confidence=LEVEL, digests={}, stages=dict.fromkeys(("base", "sft", "dpo")), cut={}, n_pairs=N_TEST, perplexity_ratios={},
    comparisons={}, slices=[],
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Simulated runs in which a rule should not report anything."""

    rule: str
    words: str
    """What is simulated."""
    draw: Callable[[np.random.Generator], Evidence]


def evidence(dpo: TrainingLog | None = None, answers: Any = None, **figures: Any) -> Evidence:
    """Return evidence with some of its parts."""
    found = SimpleNamespace(**{**vars(NO_DATA), **figures})
    log = dpo or TrainingLog()
    return Evidence(found, Curves(TrainingLog(), LEVEL), Curves(log, LEVEL), answers)  # type: ignore[arg-type]


def log_of(validation: tuple[float, ...] = (), **curves: np.ndarray) -> TrainingLog:
    """Return the log of one epoch of DPO."""
    n = len(next(iter(curves.values())))
    names = {name: name.replace("rewards_", "rewards/") for name in curves}
    entries = [
        {"step": i + 1.0, "epoch": (i + 1) / n, "loss": 0.6, **{names[k]: float(v[i]) for k, v in curves.items()}}
        for i in range(n)
    ]
    entries += [{"eval_loss": loss} for loss in validation]
    return TrainingLog(entries, {"n_pairs": BATCH * n, "n_validation": N_VALIDATION})


def losses(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Return mean losses of batches of pairs. The loss of a pair is skewed: gamma with a standard deviation of 0.5."""
    shape = (mean / 0.5) ** 2
    return np.asarray(rng.gamma(shape * BATCH, 0.25 / mean / BATCH))


def shares(rng: np.random.Generator, p: float | np.ndarray, n: int) -> np.ndarray:
    """Return the accuracies of n batches."""
    return np.asarray(rng.binomial(BATCH, p, n) / BATCH)


def accuracy(rng: np.random.Generator, p: float, **others: Any) -> Any:
    """Return the figures of a model that ranks a share of the test pairs correctly."""
    found = wilson(int(rng.binomial(N_TEST, p)), N_TEST, LEVEL)
    figures = {
        "implicit_accuracy": found,
        "likelihood_accuracy": found,
        "true_agreement": None,
        "kl_nats_per_token": None,
    }
    return SimpleNamespace(**(figures | others))


def normal(rng: np.random.Generator, mean: float, error: float) -> Estimate:
    """Return an estimate whose interval has the right coverage."""
    value, half = float(rng.normal(mean, error)), 1.96 * error
    return Estimate(value=value, low=value - half, high=value + half)


def answers(rng: np.random.Generator, stop: float, growth: float, repetition: float) -> Any:
    """Return statistics of SFT's and DPO's answers."""

    def stage(stop: float, tokens: float, repetition: float) -> Any:
        return SimpleNamespace(
            stop_rate=wilson(int(rng.binomial(N_ANSWERS, stop)), N_ANSWERS, LEVEL),
            n_tokens=normal(rng, tokens, 0.06 * tokens),
            repetition=normal(rng, repetition, 0.02),
        )

    return SimpleNamespace(
        stages={"sft": stage(0.95, 60, 0.05), "dpo": stage(0.95 - stop, 60 * growth, 0.05 + repetition)}
    )


def cases() -> Iterator[Case]:
    """Yield the simulated runs of every rule that chance can trigger."""
    for n in (40, 400):
        yield Case(
            "loss_did_not_fall",
            f"loss falls by 1% between the quarters, {n} logs",
            lambda rng, n=n: evidence(  # type: ignore[misc]
                log_of(loss=losses(rng, np.where(np.arange(n) < n // 2, 0.693, 0.686)))
            ),
        )
        yield Case(
            "loss_rose",
            f"loss stays at ln 2, {n} logs",
            lambda rng, n=n: evidence(  # type: ignore[misc]
                log_of(loss=np.r_[math.log(2), losses(rng, np.full(n - 1, math.log(2)))])
            ),
        )
    for n in (40, 400, 4000):
        yield Case(
            "unstable",
            f"1% of the steps are spikes, the others are log-normal, {n} logs",
            lambda rng, n=n: evidence(  # type: ignore[misc]
                log_of(grad_norm=rng.lognormal(0, 0.5, n) * np.where(rng.random(n) < 0.01, 100, 1))
            ),
        )
    yield Case(
        "accuracy_fluctuates",
        "accuracy rises from 60% to 80%, 100 logs",
        lambda rng: evidence(log_of(rewards_accuracies=shares(rng, np.linspace(0.6, 0.8, 100), 100))),
    )
    yield Case("weak_signal", "implicit accuracy 55%", lambda rng: evidence(stages={"dpo": accuracy(rng, 0.55)}))
    yield Case("inverted", "implicit accuracy 50%", lambda rng: evidence(stages={"dpo": accuracy(rng, 0.5)}))
    yield Case(
        "overfit",
        "training accuracy 85%, test accuracy 70%",
        lambda rng: evidence(
            log_of(rewards_accuracies=shares(rng, 0.85, 100)), stages={"sft": None, "dpo": accuracy(rng, 0.7)}
        ),
    )
    yield Case(
        "memorised",
        "training accuracy 80%",
        lambda rng: evidence(
            log_of(rewards_accuracies=shares(rng, 0.8, 100)), stages={"sft": None, "dpo": accuracy(rng, 0.7)}
        ),
    )
    yield Case(
        "validation_loss_rose",
        "five validations, the last 5% above the others, 100 new pairs each",
        lambda rng: evidence(
            log_of(
                tuple(losses_of_pairs(rng, m) for m in (0.6, 0.6, 0.6, 0.6, 0.63)), loss=losses(rng, np.full(100, 0.6))
            )
        ),
    )
    yield Case(
        "likelihood_displacement",
        "perplexity twice that of SFT",
        lambda rng: evidence(perplexity_ratios={"dpo_vs_sft": normal(rng, 2, 0.1)}),
    )
    yield Case(
        "sft_worse_than_base",
        "perplexity 5% above that of the base",
        lambda rng: evidence(perplexity_ratios={"sft_vs_base": normal(rng, 1.05, 0.02)}),
    )
    yield Case(
        "far_from_reference",
        "KL of 1 nat",
        lambda rng: evidence(stages={"dpo": accuracy(rng, 0.7, kl_nats_per_token=normal(rng, 1, 0.1))}),
    )
    yield Case("length_exploited", "correlation 0.4, accuracy 50% on pairs with a shorter chosen response", by_length)
    yield Case("answers_grew", "answers 1.5 times as long", lambda rng: evidence(answers=answers(rng, 0, 1.5, 0)))
    yield Case("stop_rate_fell", "stop rate 10 points lower", lambda rng: evidence(answers=answers(rng, 0.1, 1, 0)))
    yield Case("repetitive", "repetition 10 points higher", lambda rng: evidence(answers=answers(rng, 0, 1, 0.1)))
    yield Case("too_easy", "SFT's accuracy 95%", lambda rng: evidence(stages={"sft": accuracy(rng, 0.95)}))
    yield Case(
        "length_says_as_much",
        "length 5 points below the model",
        lambda rng: evidence(
            newest="dpo",
            stages={"dpo": accuracy(rng, 0.65)},
            length=SimpleNamespace(prefer_longer=wilson(int(rng.binomial(N_TEST, 0.6)), N_TEST, LEVEL)),
        ),
    )


def losses_of_pairs(rng: np.random.Generator, mean: float) -> float:
    """Return the mean loss of the validation pairs."""
    shape = (mean / 0.5) ** 2
    return float(rng.gamma(shape * N_VALIDATION, 0.25 / mean / N_VALIDATION))


def by_length(rng: np.random.Generator) -> Evidence:
    """Return the figures of a model whose margin is correlated with length, and is right on half of the hard pairs."""
    hard = wilson(int(rng.binomial(N_TEST // 2, 0.5)), N_TEST // 2, LEVEL)
    strata = {"chosen_shorter": hard, "chosen_longer": wilson(180, 200, LEVEL)}
    return evidence(
        length=SimpleNamespace(
            implicit_correlation=normal(rng, 0.4, 0.05),
            strata={name: SimpleNamespace(implicit_accuracy=found) for name, found in strata.items()},
        )
    )


def measure(n_runs: int, seed: int = 0) -> list[tuple[Case, int]]:
    """Return each case with the number of runs in which its rule reported a problem."""
    checks = {rule.name: rule for rule in RULES if rule.stage != "sft" or rule.name == "sft_worse_than_base"}
    counts = []
    for case in cases():
        rng = np.random.default_rng(seed)
        rule = checks[case.rule]
        counts.append((case, sum(rule.check(case.draw(rng), rule.limit) is not None for _ in range(n_runs))))
    return counts


def table(n_runs: int) -> str:
    """Return the rates as Markdown."""
    rows = [f"| rule | simulated | false alarms in {n_runs} runs |", "|---|---|---|"]
    for case, n in measure(n_runs):
        found = rate(n, n_runs, LEVEL)
        rows.append(f"| `{case.rule}` | {case.words} | {found.value:.1%} ({found.low:.1%} to {found.high:.1%}) |")
    return "\n".join(rows)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    found = table(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    PAGE.write_text(f"{before}{MARKS[0]}\n{found}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    print(found)
