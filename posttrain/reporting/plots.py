"""The pictures of a run's report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from posttrain.evaluation.figures import Calibration, Figures, Length, Slice, StageFigures
from posttrain.evaluation.intervals import Estimate
from posttrain.reporting.html import COLOURS, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"base": "base", "sft": "SFT", "dpo": "DPO", "champion": "champion"}
COLOUR = dict(zip(("sft", "dpo", "champion", "base"), COLOURS, strict=True))
ACCURACIES = {
    "likelihood_accuracy": "preference accuracy",
    "normalised_accuracy": "per token",
    "implicit_accuracy": "implicit reward",
    "true_agreement": "true agreement",
}
CURVES = {
    "sft": {"loss": ("loss", "eval_loss")},
    "dpo": {
        "loss": ("loss", "eval_loss"),
        "accuracy": ("rewards/accuracies", "eval_rewards/accuracies"),
        "reward margin": ("rewards/margins", "eval_rewards/margins"),
    },
}
STRATA = {"chosen_shorter": "chosen shorter", "same_length": "same length", "chosen_longer": "chosen longer"}
LABEL_CHARS = 40


def accuracy_figure(figures: Figures, ceiling: float | None) -> Figure:
    """Every accuracy of every model with its interval.

    Args:
        ceiling: the best accuracy that the labels allow (demo only).
    """
    stages = present(figures)
    rows = [name for name in ACCURACIES if any(getattr(found, name) for found in stages.values())]
    figure, axes = new_figure(7.0, 0.7 + 0.75 * len(rows))
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
    axes.set_yticks(range(len(rows)), [ACCURACIES[name] for name in rows])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def curve_figures(histories: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, Figure]]:
    """The learning curves of each stage, with their captions."""
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
            yield f"{NAMES[stage]}: {label}", figure
    rewards = [entry for entry in histories.get("dpo", []) if "rewards/chosen" in entry and "step" in entry]
    if rewards:
        figure, axes = new_figure(4.4, 2.5)
        for name in ("chosen", "rejected"):
            axes.plot([e["step"] for e in rewards], [e[f"rewards/{name}"] for e in rewards], linewidth=1, label=name)
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("reward")
        axes.legend(frameon=False)
        yield "DPO: rewards of the chosen and the rejected responses", figure


def margin_figure(figures: Figures) -> Figure:
    """How the likelihood margins are spread, all models over each other."""
    figure, axes = new_figure(7.0, 2.6)
    for stage, found in present(figures).items():
        if stage != "base":
            axes.stairs(
                found.margins.counts,
                found.margins.edges,
                color=COLOUR[stage],
                label=NAMES[stage],
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
    axes.legend(frameon=False)
    return figure


def slice_figure(slices: Sequence[Slice], comparison: str) -> Figure:
    """The gain on each slice with its interval."""
    figure, axes = new_figure(7.0, 0.9 + 0.3 * len(slices))
    for y, part in enumerate(slices):
        gain = part.gains[comparison]
        colour = COLOURS[3] if gain.high < 0 else COLOURS[2] if gain.low > 0 else COLOURS[0]
        _interval(axes, y, gain, colour)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    labels = [f"{part.by.replace('_', ' ')} {part.name} ({part.n_pairs})" for part in slices]
    axes.set_yticks(range(len(slices)), [label_text(label) for label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("gain in accuracy, points")
    return figure


def length_figure(length: Length) -> Figure:
    """Accuracy where the chosen response is shorter, as long, and longer."""
    strata = {name: length.strata[name] for name in STRATA if name in length.strata and length.strata[name].accuracy}
    figure, axes = new_figure(7.0, 2.6)
    stages = [stage for stage in NAMES if any(stage in part.accuracy for part in strata.values())]
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
                    label=NAMES[stage] if x == 0 else None,
                )
    axes.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(strata)), [f"{STRATA[name]}\n({part.n_pairs} pairs)" for name, part in strata.items()])
    axes.set_ylabel("accuracy in %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def calibration_figure(calibration: Calibration) -> Figure:
    """How often DPO is right, against how sure it is."""
    figure, axes = new_figure(4.4, 3.4)
    axes.plot([50, 100], [50, 100], color=INK, linewidth=0.8, linestyle=":")
    for part in calibration.bins:
        if part.accuracy is not None and part.confidence is not None:
            value = part.accuracy
            axes.errorbar([100 * part.confidence], [100 * value.value], _arms(value), fmt="o", color=COLOUR["dpo"])
    axes.set_xlabel("how sure it is, %")
    axes.set_ylabel("how often it is right, %")
    return figure


def present(figures: Figures) -> dict[str, StageFigures]:
    """The models that there are."""
    return {stage: found for stage, found in figures.stages.items() if found is not None}


def svg_file(picture: str) -> str:
    """The picture of a page as a file of its own."""
    return picture[picture.index("<svg") : picture.rindex("</svg>") + len("</svg>")]


def file_name(caption: str) -> str:
    """A caption as the name of a file, e.g. `dpo_reward_margin`."""
    return re.sub(r"\W+", "_", caption).lower()


def label_text(text: str) -> str:
    """Text of the data as a label: short, printable, and no formula."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return (shown if len(shown) <= LABEL_CHARS else shown[: LABEL_CHARS - 1] + "…").replace("$", r"\$")


def _intervals(axes: Any, places: Sequence[float], estimates: Sequence[Estimate], stage: str) -> None:
    for i, (place, estimate) in enumerate(zip(places, estimates, strict=True)):
        _interval(axes, place, estimate, COLOUR[stage], NAMES[stage] if i == 0 else None)


def _interval(axes: Any, y: float, estimate: Estimate, colour: str, label: str | None = None) -> None:
    axes.errorbar([100 * estimate.value], [y], xerr=_arms(estimate), fmt="o", color=colour, label=label)


def _arms(estimate: Estimate) -> list[list[float]]:
    """How far an interval reaches to either side, in percent; rounding may put a share of 1 just outside of its own."""
    return [[max(0.0, 100 * (estimate.value - estimate.low))], [max(0.0, 100 * (estimate.high - estimate.value))]]
