"""A run's report as one page: the verdict first, then what it rests on, then where it all came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from posttrain.evaluation.figures import Figures, SetFigures
from posttrain.evaluation.generations import Exchange, Generations
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.judge import WinRate
from posttrain.reporting.html import PageSection, bullets, figure_svg, folded, page, paragraph, preformatted, table
from posttrain.reporting.plots import (
    ACCURACIES,
    NAMES,
    STRATA,
    accuracy_figure,
    calibration_figure,
    curve_figures,
    length_figure,
    margin_figure,
    present,
    slice_figure,
)
from posttrain.reporting.run_report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY = "Accuracy of each model, with its interval; dotted: chance"
MARGINS = "How far the models prefer the chosen responses"
SLICES = "Gain of the newest model over its opponent, by slice"
LENGTH = "Accuracy where the chosen response is shorter, as long, longer"
CALIBRATION = "How sure DPO is, and how often it is right; dotted: as it should be"
N_SLICES_DRAWN = 30
N_UNFOLDED, N_LISTED = 3, 20
"""Of the exchanges: how many are open at once, and how many of the others are listed."""


def report_page(report: RunReport, pictures: dict[str, str] | None = None) -> str:
    """One self-contained HTML page; whatever the data or the models say is shown as text.

    Args:
        pictures: what `draw` gives, where it is there already.
    """
    figures, pictures = report.figures, pictures or draw(report)
    sections = [
        _accuracy(report, pictures),
        _findings(figures),
        PageSection(
            "Learning curves", "".join(svg for caption, svg in pictures.items() if caption.startswith(("SFT:", "DPO:")))
        ),
        _margins(figures, pictures),
        _slices(figures, pictures),
        _length(figures, pictures),
        *_calibration(figures, pictures),
        *([_generations(report.generations)] if report.generations and report.generations.exchanges else []),
        _data(report),
        _lineage(report),
    ]
    return page(report.lineage.run, sections, lead=f"<strong>{paragraph(report.verdict)}</strong>")


def draw(report: RunReport) -> dict[str, str]:
    """Every picture of the report as HTML, by its caption."""
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
    """The comparison that the decision rests on, e.g. `dpo_vs_sft`."""
    return f"{figures.newest}_vs_{figures.opponent}"


def _accuracy(report: RunReport, pictures: dict[str, str]) -> PageSection:
    figures = report.figures
    stages = present(figures)
    rows = [
        [label, *(percent(getattr(found, name)) for found in stages.values())]
        for name, label in ACCURACIES.items()
        if any(getattr(found, name) for found in stages.values())
    ]
    rows.append(["perplexity on chosen", *(plain(found.chosen_perplexity) for found in stages.values())])
    if any(found.kl_nats_per_token for found in stages.values()):
        rows.append(["KL to SFT, nats a token", *(plain(found.kl_nats_per_token) for found in stages.values())])
    header = ["", *(NAMES[stage] for stage in stages)]
    intro = (
        f"{figures.n_pairs} held-out pairs; in % where nothing else is said, with {figures.confidence:.0%} intervals."
    )
    sets = [(name, found) for name, found in figures.sets.items()]
    further = (
        paragraph("Preference accuracy on further sets")
        + table(
            ["set", "pairs", *(NAMES[stage] for stage in stages)],
            [[name, found.n_pairs, *(percent(_accuracy_of(found, stage)) for stage in stages)] for name, found in sets],
        )
        if sets
        else ""
    )
    return PageSection(
        "Accuracy", paragraph(intro) + pictures[ACCURACY] + table(header, rows) + _comparisons(figures) + further
    )


def _comparisons(figures: Figures) -> str:
    rows = []
    for name, found in figures.comparisons.items():
        newer, older = (NAMES[stage] for stage in name.split("_vs_"))
        rows.append(
            [f"{newer} against {older}", points(found.gain), found.n_gained, found.n_lost, f"{found.p_value:.2g}"]
        )
    return table(["", "gain, points", "pairs gained", "pairs lost", "p (McNemar, exact)"], rows)


def _findings(figures: Figures) -> PageSection:
    if not figures.findings:
        return PageSection("Findings", paragraph("Nothing is amiss by any rule."))
    return PageSection(
        "Findings",
        table(
            ["severity", "stage", "what", "evidence", "from", "what to do"],
            [
                [
                    finding.severity,
                    NAMES.get(finding.stage, finding.stage),
                    finding.title,
                    "; ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in finding.evidence.items()),
                    finding.threshold,
                    finding.advice,
                ]
                for finding in figures.findings
            ],
        ),
    )


def _margins(figures: Figures, pictures: dict[str, str]) -> PageSection:
    quantiles = ("5", "25", "50", "75", "95")
    rows = []
    for stage, found in present(figures).items():
        rows.append([f"{NAMES[stage]}, likelihood", *(round(found.margins.quantiles[q], 2) for q in quantiles)])
        if found.implicit_margins:
            rows.append(
                [f"{NAMES[stage]}, implicit", *(round(found.implicit_margins.quantiles[q], 2) for q in quantiles)]
            )
    return PageSection("Margins", pictures[MARGINS] + table(["nats", *(f"{q} %" for q in quantiles)], rows))


def _slices(figures: Figures, pictures: dict[str, str]) -> PageSection:
    if not figures.slices:
        return PageSection("Slices", paragraph("The pairs have nothing that would tell them apart."))
    name = contest(figures)
    stages = list(present(figures))
    worse = [part for part in figures.slices if part.gains[name].high < 0]
    warning = bullets(
        f"{part.by.replace('_', ' ')} {part.name} got worse: {points(part.gains[name])} points on {part.n_pairs} pairs"
        for part in worse
    )
    rows = [
        [
            part.by.replace("_", " "),
            part.name,
            part.n_pairs,
            *(percent(part.accuracy.get(stage)) for stage in stages),
            points(part.gains[name]),
        ]
        for part in figures.slices
    ]
    header = ["by", "", "pairs", *(NAMES[stage] for stage in stages), "gain, points"]
    return PageSection(
        "Slices", (warning if worse else "") + pictures[SLICES] + folded("All figures", table(header, rows))
    )


def _length(figures: Figures, pictures: dict[str, str]) -> PageSection:
    length, stages = figures.length, list(present(figures))
    rows = [
        [
            STRATA[name],
            part.n_pairs,
            *(percent(part.accuracy.get(stage)) for stage in stages),
            percent(part.implicit_accuracy),
        ]
        for name, part in length.strata.items()
    ]
    correlations = ", ".join(f"{NAMES[stage]} {plain(found)}" for stage, found in length.margin_correlation.items())
    implicit = f", implicit {plain(length.implicit_correlation)}" if length.implicit_correlation else ""
    return PageSection(
        "Length",
        paragraph(f"Always preferring the longer response is right on {percent(length.prefer_longer)} %.")
        + pictures.get(LENGTH, "")
        + table(["", "pairs", *(NAMES[stage] for stage in stages), "implicit reward"], rows)
        + paragraph(
            f"Rank correlation of margin and length difference: {correlations}{implicit}." if correlations else ""
        ),
    )


def _calibration(figures: Figures, pictures: dict[str, str]) -> Iterator[PageSection]:
    if figures.calibration:
        said = (
            f"Expected calibration error {100 * figures.calibration.ece:.1f} %; Brier score {plain(figures.calibration.brier)}, "
            "where not knowing costs 0.25."
        )
        yield PageSection("Calibration", paragraph(said) + pictures[CALIBRATION])
    if figures.wrong:
        intro = "The pairs that the model is surest about, against their labels: mislabelled pairs gather here."
        shown = (
            folded(
                f"{pair.margin_nats:.1f} nats"
                + (f", {pair.confidence:.0%} sure" if pair.confidence is not None else "")
                + (f", true margin {pair.true_margin:+.2f}" if pair.true_margin is not None else "")
                + f": {first_line(pair.prompt)}",
                table(
                    ["", pair.source], [["prompt", pair.prompt], ["chosen", pair.chosen], ["rejected", pair.rejected]]
                ),
            )
            for pair in figures.wrong
        )
        yield PageSection("Confidently wrong", paragraph(intro) + "".join(shown))


def _generations(generations: Generations) -> PageSection:
    stages = generations.stages
    rows = [
        ["stopped, %", *(percent(found.stop_rate) for found in stages.values())],
        ["tokens", *(plain(found.n_tokens) for found in stages.values())],
        ["repeated 4-grams, %", *(percent(found.repetition) for found in stages.values())],
        ["different bigrams, %", *(f"{100 * found.distinct_2:.1f}" for found in stages.values())],
    ]
    if any(found.true_reward for found in stages.values()):
        rows.append(["true reward", *(plain(found.true_reward) for found in stages.values())])
    wins = [("the hidden reward", generations.by_true_reward)]
    if judge := generations.by_judge:
        wins.append((judge.judge, judge.win_rate))
    judged = "".join(paragraph(_won(by, rate)) for by, rate in wins if rate)
    if judge := generations.by_judge:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in judge.failures.items())
        judged += paragraph(
            f"The judge failed on {judge.n_failed} prompts{f': {reasons}' if reasons else ''}, and named opposite winners in "
            f"the two orders on {judge.n_disagreed}, which count as ties.",
            quiet=True,
        )
    how = "the likeliest token each time" if not generations.temperature else f"temperature {generations.temperature:g}"
    intro = f"{len(generations.exchanges)} test prompts, at most {generations.max_new_tokens} tokens, {how}."
    shown = [_exchange(exchange, i < N_UNFOLDED) for i, exchange in enumerate(generations.exchanges)]
    more = folded(f"{len(shown) - N_LISTED} more", "".join(shown[N_LISTED:])) if len(shown) > N_LISTED else ""
    header = ["", *(NAMES[stage] for stage in stages)]
    return PageSection("Answers", paragraph(intro) + table(header, rows) + judged + "".join(shown[:N_LISTED]) + more)


def _won(by: str, rate: WinRate) -> str:
    return (
        f"By {by}, DPO's answer beats SFT's on {percent(rate.share)} % of the prompts: {rate.n_wins} won, {rate.n_ties} tied, "
        f"{rate.n_losses} lost, p = {rate.p_value:.2g}."
    )


def _exchange(exchange: Exchange, is_open: bool) -> str:
    stages = exchange.responses
    rows: list[list[Any]] = [
        ["", *(response.text for response in stages.values())],
        ["tokens", *(response.n_tokens for response in stages.values())],
        ["stopped", *("yes" if response.stopped else "no" for response in stages.values())],
    ]
    if all(response.true_reward is not None for response in stages.values()):
        rows.append(["true reward", *(f"{response.true_reward:.2f}" for response in stages.values())])
    turns = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in exchange.prompt)
    header = ["", *(NAMES[stage] for stage in stages)]
    return folded(first_line(exchange.prompt[-1]["content"]), preformatted(turns) + table(header, rows), is_open)


def _data(report: RunReport) -> PageSection:
    data, cut = report.data, report.figures.cut
    splits = ", ".join(f"{n} {split}" for split, n in data.splits.items())
    lines = [f"{data.n_read} rows read, {data.n_kept} kept ({splits}), {data.n_dropped} dropped."]
    if any(cut.values()):
        lines.append("Test pairs: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in cut.items() if n) + ".")
    if data.ceiling is not None:
        lines.append(
            f"The true reward itself is expected to agree with {100 * data.ceiling:.1f} % of these noisy labels."
        )
    sources = table(
        ["source", "layout", "rows", "revision"], ([s.path, s.format, s.n_read, s.revision or ""] for s in data.sources)
    )
    dropped = "".join(
        folded(f"{reason.replace('_', ' ')}: {n}", bullets(data.examples.get(reason, [])))
        for reason, n in data.dropped.items()
        if n
    )
    return PageSection("Data", "".join(paragraph(line) for line in lines) + sources + dropped)


def _lineage(report: RunReport) -> PageSection:
    lineage = report.lineage
    rows = [
        ["run", lineage.run],
        ["data", lineage.data],
        ["code", lineage.code],
        ["base", f"{lineage.base.id} {lineage.base.revision or lineage.base.digest}"],
        *([f"{NAMES.get(stage, stage)} checkpoint", digest] for stage, digest in lineage.models.items()),
        *([package, version] for package, version in lineage.versions.items()),
    ]
    config = yaml.safe_dump({"parameters": {"config": lineage.config}}, sort_keys=False, allow_unicode=True)
    return PageSection("Where this came from", table(["", ""], rows) + folded("The whole config", preformatted(config)))


def _accuracy_of(found: SetFigures, stage: str) -> Estimate | None:
    of_stage = found.stages.get(stage)
    return of_stage.likelihood_accuracy if of_stage else None


def percent(estimate: Estimate | None) -> str:
    """A share and its interval in percent."""
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def points(estimate: Estimate) -> str:
    """A difference of shares and its interval in percentage points."""
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def plain(estimate: Estimate | None) -> str:
    """A figure and its interval in its own unit."""
    return "-" if estimate is None else f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def first_line(text: str, n_chars: int = 90) -> str:
    """The beginning of a text, in a line."""
    line = " ".join(text.split())
    return line if len(line) <= n_chars else line[: n_chars - 1] + "…"
