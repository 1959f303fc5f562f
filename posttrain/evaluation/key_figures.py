"""The headline figures of an evaluation, without intervals, under the names that MLflow and ZenML show."""

from __future__ import annotations

from posttrain.evaluation.figures import Figures, SetFigures
from posttrain.evaluation.intervals import Estimate

NAMES = {
    "likelihood_accuracy": "accuracy",
    "normalised_accuracy": "accuracy_per_token",
    "implicit_accuracy": "accuracy_implicit",
}


def key_figures(figures: Figures) -> dict[str, float]:
    """The figures without their intervals, under names such as `accuracy/dpo` and `gain/dpo_vs_sft`.

    MLflow makes a section of charts of what stands before the slash, in alphabetical order: the accuracies come first, the
    models side by side.
    """
    flat = _of_stages(figures)
    for name, comparison in figures.comparisons.items():
        flat |= {f"gain/{name}": comparison.gain.value, f"p_value/{name}": comparison.p_value}
    flat["length/prefer_longer"] = figures.length.prefer_longer.value
    if figures.calibration:
        flat |= {"calibration/ece": figures.calibration.ece, "calibration/brier": figures.calibration.brier.value}
    for name, of_set in figures.sets.items():
        label = f"set_{name.replace('/', '_')}"
        flat |= {
            f"{label}/{key.replace('/', '_')}": value
            for key, value in _of_stages(of_set).items()
            if key.startswith("accuracy")
        }
        flat |= {f"{label}/gain_{versus}": c.gain.value for versus, c in of_set.comparisons.items()}
    return flat


def _of_stages(figures: SetFigures) -> dict[str, float]:
    return {
        f"{NAMES.get(name, name)}/{stage}": estimate.value
        for stage, of_stage in figures.stages.items()
        for name, estimate in (of_stage or ())
        if isinstance(estimate, Estimate)
    }
