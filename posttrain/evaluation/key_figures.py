"""The headline figures of an evaluation, without intervals, under the names that MLflow and ZenML show."""

from __future__ import annotations

from posttrain.evaluation.figures import Figures, SetFigures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import ANSWERS, METRICS

KEPT_OF_SETS = ("likelihood_accuracy", "normalised_accuracy", "implicit_accuracy")
OTHERS = {
    "gain": "difference in preference accuracy of two models on the same pairs",
    "p": "p-value of that difference, with prompts as the unit",
    "n": "number of test pairs and of their prompts, which are the unit of every interval and test",
    "length": "accuracy of always choosing the longer response",
    "cal": "expected calibration error and Brier score of DPO's confidence",
    "sftloss": "loss on held-out SFT data in nats per token",
    "win": "share of prompts on which DPO's answer beats SFT's",
    "win_champion": "share of prompts on which the newest model's answer beats the champion's",
}


def key_figures(figures: Figures) -> dict[str, float]:
    """Return the figures without their intervals, under names such as `acc/dpo` and `gain/dpo_vs_sft`.

    MLflow groups charts by the part before the slash, so one section shows a figure of all models. In a window of 1500
    pixels with its assistant open, MLflow cuts chart titles after about eight characters, so the names are short.
    """
    flat = _of_stages(figures) | {"n/pairs": float(figures.n_pairs), "n/prompts": float(figures.n_prompts)}
    for name, comparison in figures.comparisons.items():
        flat |= {f"gain/{name}": comparison.gain.value, f"p/{name}": comparison.p_value}
    flat["length/prefer_longer"] = figures.length.prefer_longer.value
    if figures.calibration:
        flat |= {"cal/ece": figures.calibration.ece.value, "cal/brier": figures.calibration.brier.value}
    if figures.forgetting:
        flat |= {f"sftloss/{stage}": loss.value for stage, loss in figures.forgetting.losses.items()}
    for name, of_set in figures.sets.items():
        label = f"set_{name.replace('/', '_')}"
        flat |= {f"{label}/{key.replace('/', '_')}": value for key, value in _of_stages(of_set, KEPT_OF_SETS).items()}
        flat |= {f"{label}/gain_{versus}": c.gain.value for versus, c in of_set.comparisons.items()}
    return flat


def legend() -> str:
    """Return what the names mean, as Markdown for the description of a run in MLflow."""
    metrics = {metric.chart: f"{metric.name}: {metric.meaning}" for metric in (*METRICS.values(), *ANSWERS.values())}
    return "\n".join(f"- **{name}** {meaning}" for name, meaning in (metrics | OTHERS).items())


def _of_stages(figures: SetFigures, names: tuple[str, ...] = tuple(METRICS)) -> dict[str, float]:
    return {
        f"{METRICS[name].chart}/{stage}": estimate.value
        for stage, of_stage in figures.stages.items()
        for name in names
        if isinstance(estimate := getattr(of_stage, name, None), Estimate)
    }
