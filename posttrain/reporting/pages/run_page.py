"""The page of a run: the decision first, then the evidence, then where it all came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from markupsafe import Markup

from posttrain.evaluation.figures import Figures, SetFigures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import (
    ABSENT,
    ACCURACIES,
    METRICS,
    STAGES,
    STRATA,
    TERMS,
    comparison,
    percent,
    plain,
    points,
    sample_size,
    words,
)
from posttrain.reporting.answers_view import answers_view
from posttrain.reporting.benchmarks_view import benchmarks_view
from posttrain.reporting.html import Picture, Table, first_line, render
from posttrain.reporting.pages.label_page import noise_words
from posttrain.reporting.plots import ACCURACY, CALIBRATION, LENGTH, MARGINS, NOTES, SLICES, contest, draw, present
from posttrain.reporting.run_costs import RunCosts
from posttrain.reporting.run_report import RunReport
from posttrain.reporting.verifier_report import VerifierReport

QUANTILES = ("5", "25", "50", "75", "95")


def report_page(report: RunReport, pictures: dict[str, Markup] | None = None) -> str:
    """Return the report as one self-contained HTML page. Text of the data and the models is escaped.

    Args:
        pictures: the result of `draw`, if it was already computed.
    """
    figures = report.figures
    drawn = {
        caption: Picture(caption, svg, NOTES.get(caption, ""))
        for caption, svg in (draw(report) if pictures is None else pictures).items()
    }
    generations = report.generations
    return render(
        "run.html.jinja",
        title=report.lineage.run,
        verdict=report.verdict,
        accuracy=_accuracy(report, drawn),
        findings=_findings(figures),
        curves=[picture for caption, picture in drawn.items() if caption.startswith(("SFT:", "DPO:"))],
        margins=_margins(figures, drawn),
        slices=_slices(figures, drawn) if figures.slices else None,
        length=_length(figures, drawn),
        calibration=_calibration(figures, drawn) if figures.calibration else None,
        labels=noise_words(figures.label_noise, "test pairs") if figures.label_noise else "",
        wrong=list(_wrong(figures)),
        benchmarks=benchmarks_view(report.benchmarks) if report.benchmarks else None,
        answers=answers_view(generations) if generations and generations.exchanges else None,
        data=data_view(report),
        costs=_costs(report.costs) if report.costs else None,
        lineage=lineage_view(report),
    )


def _accuracy(report: RunReport, pictures: dict[str, Picture]) -> dict[str, Any]:
    figures = report.figures
    stages = present(figures)
    shares = [name for name in ACCURACIES if any(getattr(found, name) for found in stages.values())]
    others = [
        name
        for name in ("chosen_perplexity", "kl_nats_per_token")
        if any(getattr(found, name) for found in stages.values())
    ]
    rows = [
        [METRICS[name].short, *(show(getattr(found, name)) for found in stages.values())]
        for names, show in ((shares, percent), (others, plain))
        for name in names
    ]
    terms = [(METRICS[name].short, METRICS[name].meaning) for name in (*shares, *others)]
    terms += [(name, TERMS[name].format(confidence=figures.confidence)) for name in ("interval", "gain", "p")]
    if report.data.ceiling is not None:
        terms.append(("ceiling", TERMS["ceiling"]))
    gains = [
        [comparison(name), points(found.gain), found.n_gained, found.n_lost, f"{found.p_value:.2g}"]
        for name, found in figures.comparisons.items()
    ]
    sets = [
        [name, found.n_pairs, found.n_prompts, *(percent(_accuracy_of(found, stage)) for stage in stages)]
        for name, found in figures.sets.items()
    ]
    names = [STAGES[stage] for stage in stages]
    return {
        "intro": f"{sample_size(figures, 'held-out ')}. Accuracies are in % with {figures.confidence:.0%} intervals in brackets.",
        "picture": pictures[ACCURACY],
        "figures": Table(["", *names], rows),
        "terms": terms,
        "comparisons": Table(["", "gain, points", "pairs gained", "pairs lost", "p (exact)"], gains),
        "sets": Table(["set", "pairs", "prompts", *names], sets) if sets else None,
    }


def _findings(figures: Figures) -> Table | None:
    rows = [
        [
            finding.severity,
            STAGES.get(finding.stage, finding.stage),
            finding.title,
            "; ".join(f"{words(name)} {value:.4g}" for name, value in finding.evidence.items()),
            finding.threshold,
            finding.advice,
        ]
        for finding in figures.findings
    ]
    header = ["severity", "stage", "finding", "evidence", "threshold", "what to do"]
    return Table(header, rows, is_prose=True) if rows else None


def _margins(figures: Figures, pictures: dict[str, Picture]) -> dict[str, Any]:
    rows = []
    for stage, found in present(figures).items():
        rows.append([f"{STAGES[stage]}, likelihood", *(round(found.margins.quantiles[q], 2) for q in QUANTILES)])
        if found.implicit_margins:
            quantiles = found.implicit_margins.quantiles
            rows.append([f"{STAGES[stage]}, implicit", *(round(quantiles[q], 2) for q in QUANTILES)])
    header = ["quantile, in nats", *(f"{q} %" for q in QUANTILES)]
    return {"picture": pictures[MARGINS], "figures": Table(header, rows)}


def _slices(figures: Figures, pictures: dict[str, Picture]) -> dict[str, Any]:
    name = contest(figures)
    stages = list(present(figures))
    worse = [
        f"{words(part.by)} {part.name} got worse: {points(part.gains[name])} points on {sample_size(part)}"
        for part in figures.worse_slices(name, 0.0, 1)
    ]
    rows = [
        [
            words(part.by),
            part.name,
            part.n_pairs,
            part.n_prompts,
            *(percent(part.accuracy.get(stage)) for stage in stages),
            points(part.gains[name]),
        ]
        for part in figures.slices
    ]
    header = ["by", "slice", "pairs", "prompts", *(STAGES[stage] for stage in stages), "gain, points"]
    return {"worse": worse, "picture": pictures[SLICES], "figures": Table(header, rows)}


def _length(figures: Figures, pictures: dict[str, Picture]) -> dict[str, Any]:
    length, stages = figures.length, list(present(figures))
    rows = [
        [
            STRATA[name],
            part.n_pairs,
            part.n_prompts,
            *(percent(part.accuracy.get(stage)) for stage in stages),
            percent(part.implicit_accuracy),
        ]
        for name, part in length.strata.items()
    ]
    correlations = [f"{STAGES[stage]} {plain(found)}" for stage, found in length.margin_correlation.items()]
    if length.implicit_correlation:
        correlations.append(f"implicit margin {plain(length.implicit_correlation)}")
    return {
        "intro": f"Always choosing the longer response has an accuracy of {percent(length.prefer_longer)} %.",
        "picture": pictures.get(LENGTH),
        "figures": Table(
            ["", "pairs", "prompts", *(STAGES[stage] for stage in stages), METRICS["implicit_accuracy"].short], rows
        ),
        "correlations": f"Spearman correlation of margin and difference in length: {', '.join(correlations)}."
        if correlations
        else "",
    }


def _calibration(figures: Figures, pictures: dict[str, Picture]) -> dict[str, Any]:
    calibration = figures.calibration
    assert calibration is not None
    intro = (
        f"Expected calibration error {percent(calibration.ece)} %: the mean distance between confidence and accuracy. Brier score "
        f"{plain(calibration.brier)}: the mean squared error of the probability; always answering 50 % scores 0.25."
    )
    return {"intro": intro, "picture": pictures[CALIBRATION]}


def _wrong(figures: Figures) -> Iterator[dict[str, Any]]:
    for pair in figures.wrong:
        about = [f"margin {pair.margin_nats:.1f} nats"]
        if pair.confidence is not None:
            about.append(f"{pair.confidence:.0%} confident")
        if pair.true_margin is not None:
            about.append(f"true margin {pair.true_margin:+.2f}")
        yield {
            "summary": f"{', '.join(about)}: {first_line(pair.prompt)}",
            **pair.model_dump(include={"source", "prompt", "chosen", "rejected"}),
        }


def data_view(report: RunReport | VerifierReport) -> dict[str, Any]:
    """Return what the section about the data shows."""
    data, cut = report.data, report.figures.cut
    splits = ", ".join(f"{n} {split}" for split, n in data.splits.items())
    lines = [f"{data.n_read} rows read, {data.n_kept} kept ({splits}), {data.n_dropped} dropped."]
    if any(cut.values()):
        lines.append("Test pairs: " + ", ".join(f"{n} {words(name)}" for name, n in cut.items() if n) + ".")
    if data.ceiling is not None:
        lines.append(
            f"Ceiling: the true reward itself is expected to agree with {data.ceiling:.1%} of the noisy labels."
        )
    return {
        "lines": lines,
        "sources": Table(
            ["source", "layout", "rows", "revision"],
            [[s.path, s.format, s.n_read, s.revision or ABSENT] for s in data.sources],
            is_prose=True,
        ),
        "dropped": [
            (f"{words(reason)}: {n}", data.examples.get(reason, [])) for reason, n in data.dropped.items() if n
        ],
    }


def _costs(costs: RunCosts) -> dict[str, Any]:
    return {"line": f"{costs.line()}, up to this report.", "steps": Table(costs.header, list(costs.rows()))}


def lineage_view(report: RunReport | VerifierReport) -> dict[str, Any]:
    """Return what the section about the origin shows."""
    lineage = report.lineage
    rows = [
        ["run", lineage.run],
        ["data", lineage.data],
        ["code", lineage.code],
        ["base", f"{lineage.base.id} {lineage.base.revision or lineage.base.digest}"],
        *([f"{STAGES.get(stage, stage)} checkpoint", digest] for stage, digest in lineage.models.items()),
        *([package, version] for package, version in lineage.versions.items()),
    ]
    config = yaml.safe_dump({"parameters": {"config": lineage.config}}, sort_keys=False, allow_unicode=True)
    return {"figures": Table(["", ""], rows, is_prose=True), "config": config}


def _accuracy_of(found: SetFigures, stage: str) -> Estimate | None:
    of_stage = found.stages.get(stage)
    return of_stage.likelihood_accuracy if of_stage else None
