"""The data report for people: a page, and a few lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.chat.token_report import TokenReport
from posttrain.config.check_policies import DELIBERATE, REASONS
from posttrain.data.profile import CountHistogram, Share
from posttrain.data.report import DataReport
from posttrain.reporting.html import (
    PageSection,
    bullets,
    figure_svg,
    folded,
    new_figure,
    page,
    paragraph,
    preformatted,
    table,
)

ADVICE = {
    "unparsable": "Look at the first lines named below: a download may have been cut short, or a file has another format.",
    "not_text": "Map the right columns with `columns`, or fill in what is missing.",
    "broken_encoding": "Read the originals again as what they were written in (often cp1252) and save them as UTF-8.",
    "control_characters": "Line breaks are made line feeds and other control characters go; mend the export that adds them.",
    "unknown_role": "Map the roles to system, user and assistant before the export.",
    "empty": "Responses without text are often refusals or failed generations: ask the source for them.",
    "turn_order": "Join the turns of one speaker before the export, if the conversations are worth it.",
    "prompt_differs": "A pair must answer one prompt: check how the source joins its two columns.",
    "overlong": "Raise data.max_chars if such long texts are meant to be learned from.",
    "identical": "Equal responses hold no preference: nothing to mend.",
    "disputed": "Annotators disagree: `data.checks: {disputed: drop}` trains on clear labels only, on fewer rows.",
    "prompt_in_test": "The source holds its test prompts in its training rows too: the test would have been too easy.",
    "near_test": "These would have let the model see test prompts. Raise data.near_threshold only if they are other questions.",
    "near_validation": "As for near copies of the test: the validation loss would have been too low.",
    "contaminated": "The evaluation sets named would have been trained on. Nothing to mend.",
    "conflicting": "The same two responses are ranked both ways: ask how the labels were made.",
    "duplicate": "Exact repetitions weigh pairs more than others. Nothing to mend.",
    "near_duplicate": "Near repetitions weigh pairs more than others; `keep` them if the small differences are the point.",
    "length_bias": "DPO learns length from such labels: compare dpo.loss_type sigmoid_norm, and watch the per-token accuracy.",
}
"""What a person can do about what a check has found."""

MANY_CUT = 0.05
"""Above this share of cut pairs the page speaks of it."""


def data_page(report: DataReport, tokens: TokenReport | None = None, title: str = "Data report") -> str:
    """The report as one self-contained HTML page."""
    lead = (
        f"{report.n_read:,} pairs in {report.n_rows:,} rows read, {report.n_kept:,} kept "
        f"({_percent(report.n_kept, report.n_read)}), {report.n_dropped:,} dropped. "
        + ", ".join(f"{name} {n:,}" for name, n in report.splits.items())
        + "."
    )
    sections = [
        PageSection("What to do", bullets(advice(report, tokens)) or paragraph("Nothing.")),
        PageSection("What was read", _sources(report)),
        PageSection("What was dropped, and why", _found(report, report.dropped)),
    ]
    if report.fixed:
        sections.append(PageSection("What was mended", _found(report, report.fixed)))
    if report.flagged:
        sections.append(PageSection("What was found and kept", _found(report, report.flagged)))
    sections.append(PageSection("What was kept", _kept(report)))
    if tokens:
        sections.append(PageSection("Tokens", _tokens(tokens)))
    return page(title, sections, paragraph(lead) + paragraph(f"sha256 of what was kept: {report.digest}", quiet=True))


def token_page(tokens: TokenReport) -> str:
    """What the tokenizer makes of the pairs, as one self-contained HTML page."""
    sections = [PageSection("Tokens", _tokens(tokens))]
    if said := list(_token_advice(tokens)):
        sections.insert(0, PageSection("What to do", bullets(said)))
    return page("Token report", sections)


def advice(report: DataReport, tokens: TokenReport | None = None) -> list[str]:
    """What a person can do, in sentences; the most frequent finding first."""
    counts = {**report.flagged, **report.fixed, **report.dropped}
    found = sorted((reason for reason in counts if reason in ADVICE), key=lambda reason: (-counts[reason], reason))
    said = [f"{_name(reason)} ({counts[reason]:,}): {ADVICE[reason]}" for reason in found]
    if sum(report.dropped.values()) == 0:
        said.append("No row was dropped.")
    return [*said, *(_token_advice(tokens) if tokens else ())]


def _token_advice(tokens: TokenReport) -> Iterator[str]:
    n = tokens.n_counted
    if tokens.cut.get("prompt_cut", 0) > MANY_CUT * n:
        yield (
            f"{_percent(tokens.cut['prompt_cut'], n)} of the prompts lose their beginning at dpo.max_prompt_length "
            f"{tokens.max_prompt_length}: raise it if memory allows."
        )
    if (n_stops := max(tokens.n_stops_lost.values())) > MANY_CUT * n:
        yield (
            f"Up to {_percent(n_stops, n)} of the responses lose their end of turn at dpo.max_length {tokens.max_length}, so the "
            "model does not learn to end there: raise it, or drop long responses with data.max_chars."
        )
    if n_gone := tokens.cut.get("no_room", 0) + tokens.cut.get("identical_after_cut", 0):
        yield f"{n_gone:,} pairs are left out: no room for a response, or nothing differs within dpo.max_length."


def summary_lines(report: DataReport, tokens: TokenReport | None = None) -> Iterator[str]:
    """The report in lines of plain text."""
    yield f"{report.n_read:,} pairs in {report.n_rows:,} rows read, {report.n_kept:,} kept, {report.n_dropped:,} dropped"
    yield "splits: " + ", ".join(f"{name} {n:,}" for name, n in report.splits.items())
    for kind, counts in (("dropped", report.dropped), ("mended", report.fixed), ("kept", report.flagged)):
        for reason, n in counts.items():
            yield f"  {kind} {n:>8,}  {_name(reason)}: {REASONS[reason]}"
    for name, figures in report.figures.by_source.items():
        yield f"{name}: {figures.n_rows:,} pairs; the longer response is chosen in {_interval(figures.longer_is_chosen)}"
    if tokens:
        lengths = ", ".join(f"{part} {h.mean:.0f} (at most {h.max})" for part, h in tokens.lengths.items())
        yield f"tokens: {lengths}"
        cut = ", ".join(f"{n:,} {_name(name)}" for name, n in tokens.cut.items() if n)
        yield f"within {tokens.max_length} tokens, {tokens.max_prompt_length} of them for the prompt: {cut or 'nothing is cut'}"
    yield "what to do:"
    for line in advice(report, tokens):
        yield f"  {line}"


def _sources(report: DataReport) -> str:
    header = ["source", "layout", "rows", "pairs", "kept", "dropped", "version"]
    return table(
        header,
        [
            [
                source.path, source.format, source.n_rows, source.n_read, source.n_kept, source.n_read - source.n_kept,
                (source.revision or source.digest or "-")[:12],
            ]
            for source in report.sources
        ],
    )  # fmt: skip


def _found(report: DataReport, counts: dict[str, int]) -> str:
    if not counts:
        return paragraph("Nothing.")
    rows = [[_name(reason), n, _percent(n, report.n_read), REASONS[reason]] for reason, n in counts.items()]
    examples = "".join(
        folded(
            f"{_name(reason)}: {len(report.examples[reason])} of {n:,}",
            "".join(map(preformatted, report.examples[reason])),
        )
        for reason, n in counts.items()
        if report.examples.get(reason)
    )
    note = paragraph("By design, or asked for: " + ", ".join(map(_name, design)) + ".", quiet=True) if (
        design := [reason for reason in counts if reason in DELIBERATE]
    ) else ""  # fmt: skip
    return table(["finding", "rows", "share", "meaning"], rows) + note + examples


def _kept(report: DataReport) -> str:
    figures = report.figures
    by_source = table(
        ["source", "pairs", "longer is chosen (95%)", "annotators agree", "languages of the first rows"],
        [
            [
                name,
                of_source.n_rows,
                _interval(of_source.longer_is_chosen),
                "-" if of_source.agreement is None else f"{of_source.agreement:.1%} ({of_source.n_annotated:,} rows)",
                ", ".join(
                    f"{language} {share:.0%}"
                    for language, share in list(of_source.languages.items())[:4]
                    if share >= 0.01
                ),
            ]
            for name, of_source in figures.by_source.items()
        ],
    )
    ceiling = (
        paragraph(f"The true reward itself is expected to agree with {report.ceiling:.1%} of the test labels.")
        if report.ceiling is not None
        else ""
    )
    lengths = _lengths(figures.characters, "characters", {})
    turns = table(
        ["user turns in the prompt", "pairs", "share"],
        [
            [str(turns), n, _percent(n, report.n_kept)]
            for turns, n in sorted(figures.user_turns.items(), key=lambda item: -item[1])[:8]
        ],
    )
    system = paragraph(f"{figures.n_with_system:,} prompts begin with a system message.")
    note = paragraph(
        "Longer is chosen: how often preferring the longer response, in characters, agrees with the label; pairs of equal "
        "length do not count. Languages are guessed from question and answer, so short texts may be taken for another one.",
        quiet=True,
    )
    return by_source + note + ceiling + lengths + turns + system


def _tokens(tokens: TokenReport) -> str:
    limits = {"max_prompt_length": tokens.max_prompt_length, "max_length": tokens.max_length}
    rows = [[_name(name), n, _percent(n, tokens.n_counted)] for name, n in tokens.cut.items()]
    lost = table(
        ["", "tokens in all", "tokens cut off", "without end of turn"],
        [
            [
                part,
                round(tokens.lengths[part].mean * tokens.lengths[part].n),
                tokens.n_tokens_lost[part],
                tokens.n_stops_lost.get(part, "-"),
            ]
            for part in tokens.lengths
        ],
    )
    return (
        paragraph(
            f"{tokens.n_counted:,} of {tokens.n_pairs:,} pairs were tokenised. Chat template: {tokens.template}. "
            f"Longer is chosen, in tokens: {_interval(tokens.longer_is_chosen)}."
        )
        + _lengths(tokens.lengths, "tokens", limits)
        + table(["pairs", "count", "share"], rows)
        + lost
    )


def _lengths(histograms: dict[str, CountHistogram], unit: str, limits: dict[str, int]) -> str:
    figure, axes = new_figure(7.0, 2.8)
    for n, (part, histogram) in enumerate(histograms.items()):
        edges = [2**i for i in range(len(histogram.counts))]
        # Bin 0, of texts without any length, has no place on a logarithmic axis.
        axes.stairs(histogram.counts[1:], edges, label=part, linewidth=1.8, linestyle=("-", "-", "--")[n % 3])
    for name, limit in limits.items():
        axes.axvline(limit, color="#8a8f98", linewidth=1, linestyle=":")
        axes.annotate(name, (limit, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", ha="right", fontsize=8,
                      color="#8a8f98")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.margins(y=0.25)  # room for the names of the limits
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(unit)
    axes.set_ylabel("pairs")
    axes.legend(frameon=False)
    rows = [[part, f"{h.mean:,.0f}", h.max] for part, h in histograms.items()]
    return figure_svg(figure, f"Lengths in {unit}") + table(["", f"mean {unit}", "longest"], rows)


def _interval(share: Share | None) -> str:
    return "-" if share is None else f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _percent(n: int, of: int) -> str:
    return f"{n / of:.1%}" if of else "-"


def _name(reason: str) -> str:
    return reason.replace("_", " ")
