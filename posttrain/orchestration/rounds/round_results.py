"""The figures of the rounds of a loop, read from its runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from zenml.client import Client
from zenml.models import PipelineRunResponse

from posttrain.evaluation.divergence import NextTokenKL
from posttrain.models.loading import load_model
from posttrain.orchestration.finished_runs import first_run, output
from posttrain.reporting.pages.rounds_page import RoundFigures
from posttrain.reporting.run_report import RunReport

Rounds = Sequence[tuple[PipelineRunResponse | None, PipelineRunResponse]]
N_KL_PAIRS = 128


def figures_of_rounds(rounds: Rounds) -> list[RoundFigures]:
    """Return the figures of each round."""
    kl = _kl_from_sft([trained for _, trained in rounds])
    return [_figures(i, *runs, kl[i]) for i, runs in enumerate(rounds)]


def _figures(
    number: int, collected: PipelineRunResponse | None, trained: PipelineRunResponse, kl: float | None
) -> RoundFigures:
    report: RunReport = output(trained.steps["report"]).load()
    figures, generations = report.figures, report.generations
    stage = figures.stages[figures.newest]
    assert stage is not None
    answers = generations.stages.get(figures.newest) if generations else None
    compared = generations.comparisons.get(f"{figures.newest}_vs_{figures.opponent}") if generations else None
    rates = list(compared.win_rates.values()) if compared else []
    found = output(collected.steps["collect"]).load().report if collected else None
    scores = [counts.mean_score for counts in found.models.values()] if found else []
    return RoundFigures(
        number=number,
        run=trained.name,
        n_pairs=found.n_pairs if found else None,
        accuracy=stage.likelihood_accuracy,
        reward=answers.true_reward if answers else None,
        win_rate=rates[0].share if rates else None,
        collected_score=scores[0] if scores else None,
        kl_from_sft=kl,
        n_tokens=answers.n_tokens if answers else None,
        promoted=report.promotion.promoted,
        minutes=sum((_duration(run) for run in (collected, trained) if run), timedelta()).total_seconds() / 60,
    )


def _duration(run: PipelineRunResponse) -> timedelta:
    return run.end_time - run.start_time if run.end_time and run.start_time else timedelta()


def _kl_from_sft(runs: Sequence[PipelineRunResponse]) -> list[float | None]:
    """Return the KL divergence of each round's model from the SFT model of round 0 on the same test pairs.

    It is measured here, so only where the artifacts are on this machine.
    """
    first = runs[0].steps
    if "train_sft" not in first or not Client().active_stack.artifact_store.config.is_local:
        return [None] * len(runs)
    sft = output(first["train_sft"]).load()
    _, model, _ = (output(first["resolve_base"], name).load() for name in first["resolve_base"].outputs)
    rows = output(first["tokenise"], "tokens").load().rows("test")
    kl = NextTokenKL(rows, min(N_KL_PAIRS, len(rows)), seed=0)
    base = sft.manifest.base
    kl.remember(load_model(base, model, sft), model)
    found: list[float | None] = []
    for run in runs:
        checkpoint = output(first_run(run.steps["train_dpo"])).load() if "train_dpo" in run.steps else sft
        found.append(float(kl.measure(load_model(base, model, checkpoint), model).mean()))
    return found
