"""The page of a verifier: the decision first, then how well it ranks, judges and chooses answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from posttrain.evaluation.labels import STRATA, percent, plain, points, sample_size, words
from posttrain.evaluation.verification.best_of_n import BestOf
from posttrain.evaluation.verification.verifier_figures import VerifierFigures
from posttrain.reporting.drawing import COLOURS, INK, OUTSIDE, figure_svg, new_figure
from posttrain.reporting.html import Picture, Table, first_line, render
from posttrain.reporting.pages.run_page import data_view, lineage_view
from posttrain.reporting.plots import calibration_figure
from posttrain.reporting.verifier_report import VerifierReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPPONENTS = {"champion": "the champion", "length": "length alone"}
TERMS = [
    ("pairwise accuracy", "share of pairs in which the chosen answer scores higher than the rejected one; ties count one half"),
    ("length alone", "always preferring the longer answer, or always the shorter one, whichever is right more often"),
    ("AUC", "probability that a right answer scores higher than a wrong one, of any two questions; chance gives one half"),
    ("calibration error", "mean distance between the stated probability and how often it comes true"),
]  # fmt: skip


def verifier_page(report: VerifierReport) -> str:
    """Return the report as one self-contained HTML page. Text of the data is escaped."""
    figures = report.figures
    return render(
        "verifier.html.jinja",
        title=report.lineage.run,
        verdict=report.verdict,
        intro=f"{sample_size(figures, 'held-out ')}. Shares are in % with {figures.confidence:.0%} intervals in brackets.",
        accuracy=_accuracy(figures),
        terms=TERMS,
        absolute=_absolute(figures),
        calibration=_picture("Confidence and accuracy in pairs", calibration_figure(figures.calibration)),
        best_of=list(_best_of(figures)),
        length=_length(figures),
        slices=_slices(figures) if figures.slices else None,
        curves=list(_curves(report.history)),
        wrong=[
            {
                "summary": f"{pair.confidence or 0:.0%} confident: {first_line(pair.prompt)}",
                **pair.model_dump(include={"source", "prompt", "chosen", "rejected"}),
            }
            for pair in figures.wrong
        ],
        data=data_view(report),
        lineage=lineage_view(report),
    )


def _accuracy(figures: VerifierFigures) -> Table:
    rows = [["pairwise accuracy", percent(figures.accuracy)]]
    if figures.champion_accuracy:
        rows.append(["pairwise accuracy of the champion", percent(figures.champion_accuracy)])
    rows.append(["accuracy of length alone", percent(figures.length.baseline)])
    rows.append([f"gain over {OPPONENTS[figures.opponent]}, points", points(figures.gain)])
    rows.append(["pairs gained and lost", f"{figures.n_gained:,} and {figures.n_lost:,}"])
    rows.append(["p (exact)", f"{figures.gain.p_value:.2g}"])
    if figures.true_agreement:
        rows.append(["agreement with the true reward", percent(figures.true_agreement)])
    rows.append(["calibration error", percent(figures.calibration.ece)])
    rows.append(["Brier score", plain(figures.calibration.brier)])
    return Table(["", ""], rows)


def _absolute(figures: VerifierFigures) -> dict[str, Any]:
    found = figures.absolute
    fitted = (
        f"The probability that an answer is right is sigmoid({found.scale:.3g} × score {found.offset:+.3g}), fitted to "
        f"{found.n_fitted:,} answers of the validation split."
        if found.n_fitted
        else "The probability that an answer is right is sigmoid(score), as the validation split has too few answers for a fit."
    )
    left_out = (
        f", without {found.n_ambiguous:,} that are chosen in one pair and rejected in another"
        if found.n_ambiguous
        else ""
    )
    rows = [
        ["AUC", percent(found.auc)],
        ["accuracy", percent(found.accuracy)],
        ["accuracy of the more frequent verdict", f"{100 * found.larger_class:.1f}"],
        ["calibration error", percent(found.calibration.ece)],
        ["Brier score", plain(found.calibration.brier)],
    ]
    return {
        "intro": f"Each of {found.n_answers:,} answers alone{left_out}: chosen ones are right, rejected ones are wrong. {fitted}",
        "figures": Table(["", ""], rows),
        "picture": _picture("Confidence and accuracy of single answers", calibration_figure(found.calibration)),
    }


def _best_of(figures: VerifierFigures) -> Iterator[dict[str, Any]]:
    for curve, caption, unit in (
        (figures.best_of_sampled, "Best of n answers of the starting model", "true reward"),
        (figures.best_of_held_out, "Best of n held-out answers to a question", "share of right answers"),
    ):
        if len(curve) > 1:
            rows = [
                [found.n, found.n_questions, plain(found.quality), plain(found.gain), plain(found.ceiling)]
                for found in curve
            ]
            header = ["n", "questions", f"chosen, {unit}", "gain over a random answer", "best possible"]
            yield {
                "picture": _picture(caption, _best_of_figure(curve, unit)),
                "figures": Table(header, rows),
            }


def _best_of_figure(curve: Sequence[BestOf], unit: str) -> Figure:
    figure, axes = new_figure(4.4, 3.0)
    n = [found.n for found in curve]
    for name, colour in (("ceiling", COLOURS[2]), ("quality", COLOURS[0])):
        values = [getattr(found, name) for found in curve]
        axes.plot(
            n,
            [one.value for one in values],
            marker="o",
            color=colour,
            label={"quality": "chosen"}.get(name, "best possible"),
        )
        axes.fill_between(
            n, [one.low for one in values], [one.high for one in values], color=colour, alpha=0.2, linewidth=0
        )
    axes.plot(
        n,
        [found.quality.value - found.gain.value for found in curve],
        color=INK,
        linewidth=0.8,
        linestyle=":",
        label="random",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [str(one) for one in n])
    axes.set_xlabel("answers to choose from")
    axes.set_ylabel(unit)
    axes.legend(**OUTSIDE)
    return figure


def _length(figures: VerifierFigures) -> dict[str, Any]:
    length = figures.length
    rows = [[STRATA[name], length.n_pairs[name], percent(found)] for name, found in length.accuracy.items()]
    return {
        "intro": f"Always preferring the longer answer has an accuracy of {percent(length.prefer_longer)} %."
        + (
            f" Spearman correlation of margin and difference in length: {plain(length.correlation)}."
            if length.correlation
            else ""
        ),
        "figures": Table(["", "pairs", "pairwise accuracy"], rows),
    }


def _slices(figures: VerifierFigures) -> Table:
    name = figures.comparison
    rows = [
        [
            words(part.by),
            part.name,
            part.n_pairs,
            part.n_prompts,
            percent(part.accuracy["verifier"]),
            points(part.gains[name]),
        ]
        for part in figures.slices
    ]
    return Table(
        ["by", "slice", "pairs", "prompts", "pairwise accuracy", f"gain over {OPPONENTS[figures.opponent]}, points"],
        rows,
    )


def _curves(history: list[dict[str, float]]) -> Iterator[Picture]:
    for label, note in (
        ("loss", "The loss of pairs starts near log 2 = 0.69."),
        ("accuracy", "Share of pairs ranked rightly."),
    ):
        figure, axes = new_figure(4.4, 2.5)
        for name, shown, width in ((label, "training", 1.0), (f"eval_{label}", "validation", 2.0)):
            found = [(entry["step"], entry[name]) for entry in history if name in entry and "step" in entry]
            if found:
                axes.plot(
                    *zip(*found, strict=True),
                    linewidth=width,
                    label=shown,
                    marker="o" if len(found) < 12 else None,
                    markersize=4,
                )
        axes.set_xlabel("optimisation step")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
        yield _picture(f"Verifier: {label}", figure, note)


def _picture(caption: str, figure: Figure, note: str = "") -> Picture:
    svg: Markup = figure_svg(figure, caption)
    return Picture(caption, svg, note)
