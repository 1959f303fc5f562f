"""Charts for the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from posttrain.evaluation.figures import Calibration, Figures, Length, Slice, StageFigures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import ACCURACIES, METRICS, STAGES, STRATA, sample_size, words
from posttrain.reporting.drawing import COLOURS, INK, OUTSIDE, WIDE, figure_svg, new_figure
from posttrain.reporting.run_report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = dict(zip(("sft", "dpo", "champion", "base"), COLOURS, strict=True))
CURVES = {
    "sft": {"loss": ("loss", "eval_loss")},
    "dpo": {
        "loss": ("loss", "eval_loss"),
        "accuracy": ("rewards/accuracies", "eval_rewards/accuracies"),
        "reward margin": ("rewards/margins", "eval_rewards/margins"),
    },
}
LABEL_CHARS = 40
N_SLICES_DRAWN = 30

ACCURACY = "Accuracy of each model"
MARGINS = "Likelihood margins of the models"
SLICES = "Gain of the newest model over its opponent, by slice"
LENGTH = "Accuracy by which response is longer"
CALIBRATION = "Confidence and accuracy of DPO"
REWARDS = "DPO: rewards of the chosen and the rejected responses"
NOTES = {
    ACCURACY: "Lines are confidence intervals. Dotted: chance. Dashed: the ceiling (demo only).",
    MARGINS: "Pairs by log p(chosen) − log p(rejected). To the right of 0 the model prefers the chosen response.",
    SLICES: "Lines are confidence intervals; in brackets the number of pairs and of prompts. Left of 0 the newest model is worse.",
    LENGTH: "Length in tokens. A model that has learnt length instead of quality is better where the chosen response is longer.",
    CALIBRATION: "Confidence is the probability that DPO gives to the response it prefers. Dotted: perfect calibration.",
    "SFT: loss": "Mean negative log-likelihood per response token.",
    "DPO: loss": "The loss that is minimised. The sigmoid loss starts at log 2 = 0.69.",
    "DPO: accuracy": "Share of pairs in which the chosen response has the higher implicit reward.",
    "DPO: reward margin": "Mean implicit reward of the chosen minus that of the rejected responses.",
    REWARDS: "The implicit reward, beta × (log p of DPO − log p of the reference). Both may fall; the distance counts.",
}
"""How to read each picture."""


def draw(report: RunReport) -> dict[str, Markup]:
    """Return every picture of the report as SVG, by its caption."""
    return {caption: figure_svg(figure, caption) for caption, figure in _figures(report)}


def _figures(report: RunReport) -> Iterator[tuple[str, Figure]]:
    figures = report.figures
    yield ACCURACY, accuracy_figure(figures, report.data.ceiling)
    yield from curve_figures(report.histories)
    yield MARGINS, margin_figure(figures)
    if figures.slices:
        yield SLICES, slice_figure(figures.slices[:N_SLICES_DRAWN], contest(figures))
    if any(part.accuracy for part in figures.length.strata.values()):
        yield LENGTH, length_figure(figures.length)
    if figures.calibration:
        yield CALIBRATION, calibration_figure(figures.calibration)


def contest(figures: Figures) -> str:
    """Return the comparison that the decision rests on, e.g. `dpo_vs_sft`."""
    return f"{figures.newest}_vs_{figures.opponent}"


def accuracy_figure(figures: Figures, ceiling: float | None) -> Figure:
    """Draw every accuracy of every model with its interval.

    Args:
        ceiling: the best accuracy that the labels allow (demo only).
    """
    stages = present(figures)
    rows = [name for name in ACCURACIES if any(getattr(found, name) for found in stages.values())]
    figure, axes = new_figure(WIDE, 0.7 + 0.75 * len(rows))
    step = 0.7 / max(1, len(stages))
    for i, (stage, found) in enumerate(stages.items()):
        shown = [(y, getattr(found, name)) for y, name in enumerate(rows) if getattr(found, name)]
        offset = (i - (len(stages) - 1) / 2) * step
        _intervals(axes, [y + offset for y, _ in shown], [estimate for _, estimate in shown], stage)
    axes.axvline(50, color=INK, linewidth=0.8, linestyle=":")
    if ceiling is not None:
        axes.axvline(100 * ceiling, color=INK, linewidth=0.8, linestyle="--")
        axes.annotate(
            "ceiling ", (100 * ceiling, 1), xycoords=("data", "axes fraction"), ha="right", va="top", color=INK
        )
    axes.set_yticks(range(len(rows)), [METRICS[name].short for name in rows])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in %")
    axes.legend(**OUTSIDE)
    return figure


def curve_figures(histories: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, Figure]]:
    """Draw the learning curves of each stage; yields caption and figure."""
    for stage, panels in CURVES.items():
        for label, (train, validation) in panels.items():
            history = histories.get(stage, [])
            if not any(train in entry for entry in history):
                continue
            figure, axes = new_figure(4.4, 2.5)
            for name, shown, width in ((train, "training", 1.0), (validation, "validation", 2.0)):
                points = [(entry["step"], entry[name]) for entry in history if name in entry and "step" in entry]
                if points:
                    marker = "o" if len(points) < 12 else None
                    axes.plot(*zip(*points, strict=True), linewidth=width, label=shown, marker=marker, markersize=4)
            axes.set_xlabel("optimisation step")
            axes.set_ylabel(label)
            axes.legend(frameon=False)
            yield f"{STAGES[stage]}: {label}", figure
    rewards = [entry for entry in histories.get("dpo", []) if "rewards/chosen" in entry and "step" in entry]
    if rewards:
        figure, axes = new_figure(4.4, 2.5)
        for name in ("chosen", "rejected"):
            axes.plot([e["step"] for e in rewards], [e[f"rewards/{name}"] for e in rewards], linewidth=1, label=name)
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("reward")
        axes.legend(frameon=False)
        yield REWARDS, figure


def margin_figure(figures: Figures) -> Figure:
    """Draw the distribution of the likelihood margins, all models in one figure."""
    figure, axes = new_figure(WIDE, 2.6)
    for stage, found in present(figures).items():
        if stage != "base":
            axes.stairs(
                found.margins.counts,
                found.margins.edges,
                color=COLOUR[stage],
                label=STAGES[stage],
                fill=True,
                alpha=0.35,
            )
            axes.stairs(found.margins.counts, found.margins.edges, color=COLOUR[stage])
    trained = [found.margins.quantiles for stage, found in present(figures).items() if stage != "base"]
    low, high = min(q["5"] for q in trained), max(q["95"] for q in trained)
    axes.set_xlim(low - (high - low) / 2, high + (high - low) / 2)  # the base's own margins are far wider
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("log p(chosen) - log p(rejected), nats")
    axes.set_ylabel("pairs")
    axes.legend(**OUTSIDE)
    return figure


def slice_figure(slices: Sequence[Slice], comparison: str) -> Figure:
    """Draw the gain on each slice with its interval."""
    figure, axes = new_figure(WIDE, 0.9 + 0.3 * len(slices))
    for y, part in enumerate(slices):
        gain = part.gains[comparison]
        colour = COLOURS[3] if gain.high < 0 else COLOURS[2] if gain.low > 0 else COLOURS[0]
        _interval(axes, y, gain, colour)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    labels = [f"{words(part.by)} {part.name} ({sample_size(part)})" for part in slices]
    axes.set_yticks(range(len(slices)), [label_text(label) for label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("gain in accuracy, points")
    return figure


def length_figure(length: Length) -> Figure:
    """Draw the accuracy where the chosen response is shorter than, as long as and longer than the rejected one."""
    strata = {name: length.strata[name] for name in STRATA if name in length.strata and length.strata[name].accuracy}
    figure, axes = new_figure(WIDE, 2.6)
    stages = [stage for stage in STAGES if any(stage in part.accuracy for part in strata.values())]
    for i, stage in enumerate(stages):
        for x, part in enumerate(strata.values()):
            if estimate := part.accuracy.get(stage):
                place = x + (i - (len(stages) - 1) / 2) * 0.15
                axes.errorbar(
                    [place],
                    [100 * estimate.value],
                    _arms(estimate),
                    fmt="o",
                    color=COLOUR[stage],
                    label=STAGES[stage] if x == 0 else None,
                )
    axes.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(strata)), [f"{STRATA[name]}\n({sample_size(part)})" for name, part in strata.items()])
    axes.set_ylabel("accuracy in %")
    axes.legend(**OUTSIDE)
    return figure


def calibration_figure(calibration: Calibration) -> Figure:
    """Draw the accuracy of DPO against its confidence."""
    figure, axes = new_figure(4.4, 3.4)
    axes.plot([50, 100], [50, 100], color=INK, linewidth=0.8, linestyle=":")
    for part in calibration.bins:
        if part.accuracy is not None and part.confidence is not None:
            value = part.accuracy
            axes.errorbar([100 * part.confidence], [100 * value.value], _arms(value), fmt="o", color=COLOUR["dpo"])
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("accuracy, %")
    return figure


def present(figures: Figures) -> dict[str, StageFigures]:
    """Return the figures of the models that the run has."""
    return {stage: found for stage, found in figures.stages.items() if found is not None}


def label_text(text: str) -> str:
    """Return text of the data as a label: short, printable, and not read as a formula."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return (shown if len(shown) <= LABEL_CHARS else shown[: LABEL_CHARS - 1] + "…").replace("$", r"\$")


def _intervals(axes: Any, places: Sequence[float], estimates: Sequence[Estimate], stage: str) -> None:
    for i, (place, estimate) in enumerate(zip(places, estimates, strict=True)):
        _interval(axes, place, estimate, COLOUR[stage], STAGES[stage] if i == 0 else None)


def _interval(axes: Any, y: float, estimate: Estimate, colour: str, label: str | None = None) -> None:
    axes.errorbar([100 * estimate.value], [y], xerr=_arms(estimate), fmt="o", color=colour, label=label)


def _arms(estimate: Estimate) -> list[list[float]]:
    """Return how far an interval extends to either side, in percent; rounding can put a share of 1 just outside its interval."""
    return [[max(0.0, 100 * (estimate.value - estimate.low))], [max(0.0, 100 * (estimate.high - estimate.value))]]
