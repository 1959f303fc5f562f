"""The data report for people: a page, and a few lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.chat.token_report import TokenReport
from posttrain.chat.trained_text import TrainedRow
from posttrain.config.check_policies import DELIBERATE, REASONS
from posttrain.data.profile import CountHistogram
from posttrain.data.report import DataReport
from posttrain.evaluation.labels import ABSENT, percent, words
from posttrain.reporting.drawing import INK, OUTSIDE, WIDE, figure_svg, new_figure
from posttrain.reporting.html import Picture, Table, render

ADVICE = {
    "unparsable": "Look at the first lines listed below. The download may be incomplete, or a file has another format.",
    "not_text": "Set `columns` to the right column names, or fill in the missing values.",
    "broken_encoding": "If the files have another encoding than UTF-8 (often cp1252), set `encoding` of the source.",
    "control_characters": "Line breaks become line feeds and other control characters are removed. Fix the export that adds them.",
    "unknown_role": "Map the roles to system, user and assistant before you export the data.",
    "empty": "Responses without text are often refusals or failed generations. Check the source.",
    "turn_order": "Merge consecutive turns of one speaker before you export the data, if you need these conversations.",
    "prompt_differs": "Both responses of a pair must answer the same prompt. Check how the source joins its two columns.",
    "overlong": "Raise data.max_chars if the model should learn from such long texts.",
    "identical": "Equal responses express no preference. No action needed.",
    "unread_content": "Remove the column if the text alone is what the model should learn from, or leave these rows out.",
    "system_differs": "Remove the column `system`, or correct the system messages of these conversations.",
    "score_against_choice": "Find out which of the two is right. `keep` trusts the choice.",
    "disputed": "Annotators disagree. `data.checks: {disputed: drop}` trains on fewer rows with clear labels.",
    "prompt_in_test": "The source has some test prompts in its training rows too. With them the test would be too easy.",
    "near_test": "With these rows the model would have seen test prompts. Raise data.near_threshold if they differ enough.",
    "near_validation": "With these rows the validation loss would be too low. Raise data.near_threshold if they differ enough.",
    "contaminated": "These rows contain prompts of the evaluation sets in data.contamination. No action needed.",
    "conflicting": "The same two responses are ranked both ways. Find out how the labels were made.",
    "duplicate": "Repeated pairs would have a higher weight than others. No action needed.",
    "near_duplicate": "Near-duplicates would have a higher weight than others. Set `keep` if the small differences matter.",
    "length_bias": "DPO learns to prefer length from such labels. Try dpo.loss_type sigmoid_norm and compare accuracy per token.",
}
"""What to do about the rows that a check finds."""

N_UNMATCHED = 20
"""Number of entries of data.exclude that are named."""
MANY_CUT = 0.05
"""The page gives advice if more than this share of the pairs is cut."""


def data_page(
    report: DataReport,
    tokens: TokenReport | None = None,
    title: str = "Data report",
    trained: Sequence[TrainedRow] = (),
) -> str:
    """Return the report as one self-contained HTML page.

    Args:
        trained: the first rows as they are trained.
    """
    splits = ", ".join(f"{name} {n:,}" for name, n in report.splits.items())
    return render(
        "data.html.jinja",
        title=title,
        lead=f"{report.n_read:,} pairs in {report.n_rows:,} rows read, {report.n_kept:,} kept "
        f"({_share(report.n_kept, report.n_read)}), {report.n_dropped:,} dropped. {splits}.",
        digest=report.digest,
        advice=advice(report, tokens),
        sources=_sources(report),
        found=[
            ("What was dropped, and why", _found(report, report.dropped)),
            *([("What was corrected", _found(report, report.fixed))] if report.fixed else []),
            *([("What was found and kept", _found(report, report.flagged))] if report.flagged else []),
        ],
        kept=_kept(report),
        tokens=_tokens(tokens) if tokens else None,
        trained=trained,
    )


def token_page(tokens: TokenReport) -> str:
    """Return what the tokenizer makes of the pairs as one self-contained HTML page."""
    return render("tokens.html.jinja", title="Token report", advice=list(_token_advice(tokens)), tokens=_tokens(tokens))


def advice(report: DataReport, tokens: TokenReport | None = None) -> list[str]:
    """Return what a person can do, in sentences, the most frequent finding first."""
    counts = {**report.flagged, **report.fixed, **report.dropped}
    found = sorted((reason for reason in counts if reason in ADVICE), key=lambda reason: (-counts[reason], reason))
    said = [f"{words(reason)} ({counts[reason]:,}): {ADVICE[reason]}" for reason in found]
    if unmatched := _unmatched(report):
        said.append(f"{unmatched}.")
    if sum(report.dropped.values()) == 0:
        said.append("No row was dropped.")
    return [*said, *(_token_advice(tokens) if tokens else ())]


def _unmatched(report: DataReport) -> str | None:
    """Return which entries of data.exclude match no row; None if all do."""
    if not (left := report.unmatched_exclusions):
        return None
    more = f" and {len(left) - N_UNMATCHED:,} more" if len(left) > N_UNMATCHED else ""
    return f"data.exclude: {', '.join(left[:N_UNMATCHED])}{more} match no usable row of these sources"


def _token_advice(tokens: TokenReport) -> Iterator[str]:
    n = tokens.n_counted
    if tokens.cut.get("prompt_cut", 0) > MANY_CUT * n:
        yield (
            f"{_share(tokens.cut['prompt_cut'], n)} of the prompts lose their beginning at dpo.max_prompt_length "
            f"{tokens.max_prompt_length}. Raise it if memory allows."
        )
    if (n_stops := max(tokens.n_stops_lost.values())) > MANY_CUT * n:
        yield (
            f"Up to {_share(n_stops, n)} of the responses lose their end of turn at dpo.max_length {tokens.max_length}, so the "
            "model does not learn to stop there. Raise it, or drop long responses with data.max_chars."
        )
    yield from tokens.notes
    for check, count in tokens.findings.items():
        how = f", {tokens.dropped[check]:,} dropped" if tokens.dropped.get(check) else ""
        yield f"{words(check)} ({count:,} rows{how}): {REASONS[check]}. For example {tokens.finding_examples[check][0]}."
    if left_out := ", ".join(f"{name} in {count:,} rows" for name, count in tokens.left_out.items()):
        yield f"The chat template leaves out: {left_out}."
    if n_idle := tokens.earlier_answers.get("not trained", 0):
        yield (
            f"{n_idle:,} earlier answers in the conversations of SFT are not trained on. `sft.loss_on: all` trains on every "
            "answer of the assistant."
        )
    if n_gone := tokens.cut.get("no_room", 0) + tokens.cut.get("identical_after_cut", 0):
        yield f"{n_gone:,} pairs are left out: there is no room for a response, or both responses are equal within dpo.max_length."


def summary_lines(report: DataReport, tokens: TokenReport | None = None) -> Iterator[str]:
    """Yield the report in lines of plain text."""
    yield f"{report.n_read:,} pairs in {report.n_rows:,} rows read, {report.n_kept:,} kept, {report.n_dropped:,} dropped"
    yield "splits: " + ", ".join(f"{name} {n:,}" for name, n in report.splits.items())
    for kind, counts in (("dropped", report.dropped), ("corrected", report.fixed), ("kept", report.flagged)):
        for reason, n in counts.items():
            yield f"  {kind} {n:>8,}  {words(reason)}: {REASONS[reason]}"
    for name, figures in report.figures.by_source.items():
        yield f"{name}: {figures.n_rows:,} pairs; the longer response is chosen in {percent(figures.longer_is_chosen)} %"
    for source in report.sources:
        if source.unread:
            columns = ", ".join(f"{name} ({n:,} rows)" for name, n in source.unread.items())
            yield f"{source.path}: nothing reads {columns}"
    if tokens:
        lengths = ", ".join(f"{part} {h.mean:.0f} (at most {h.max})" for part, h in tokens.lengths.items())
        yield f"tokens: {lengths}"
        cut = ", ".join(f"{n:,} {words(name)}" for name, n in tokens.cut.items() if n)
        yield f"within {tokens.max_length} tokens, {tokens.max_prompt_length} of them for the prompt: {cut or 'nothing is cut'}"
    yield "what to do:"
    for line in advice(report, tokens):
        yield f"  {line}"


def _sources(report: DataReport) -> Table:
    header = ["source", "layout", "rows", "pairs", "kept", "dropped", "not read", "version"]
    rows = [
        [
            source.path, source.format, source.n_rows, source.n_read, source.n_kept, source.n_read - source.n_kept,
            ", ".join(f"{name} ({n:,})" for name, n in source.unread.items()) or ABSENT,
            (source.revision or source.digest or ABSENT)[:12],
        ]
        for source in report.sources
    ]  # fmt: skip
    return Table(header, rows)


def _found(report: DataReport, counts: dict[str, int]) -> dict[str, Any]:
    rows = [[words(reason), n, _share(n, report.n_read), REASONS[reason]] for reason, n in counts.items()]
    examples = [
        (f"{words(reason)}: {len(report.examples[reason])} of {n:,}", report.examples[reason])
        for reason, n in counts.items()
        if report.examples.get(reason)
    ]
    return {
        "figures": Table(["finding", "rows", "share", "meaning"], rows) if rows else None,
        "deliberate": ", ".join(words(reason) for reason in counts if reason in DELIBERATE),
        "examples": examples,
    }


def _kept(report: DataReport) -> dict[str, Any]:
    figures = report.figures
    header = ["source", "pairs", "longer is chosen, %", "annotators agree", "languages of the first rows"]
    by_source = [
        [
            name,
            of_source.n_rows,
            percent(of_source.longer_is_chosen),
            ABSENT if of_source.agreement is None else f"{of_source.agreement:.1%} ({of_source.n_annotated:,} rows)",
            ", ".join(
                f"{language} {share:.0%}" for language, share in list(of_source.languages.items())[:4] if share >= 0.01
            ),
        ]
        for name, of_source in figures.by_source.items()
    ]
    turns = [
        [str(turns), n, _share(n, report.n_kept)]
        for turns, n in sorted(figures.user_turns.items(), key=lambda item: -item[1])[:8]
    ]
    return {
        "by_source": Table(header, by_source),
        "ceiling": ABSENT if report.ceiling is None else f"{report.ceiling:.1%}",
        "lengths": _lengths(figures.characters, "characters", {}),
        "turns": Table(["user turns in the prompt", "pairs", "share"], turns),
        "n_with_system": figures.n_with_system,
    }


def _tokens(tokens: TokenReport) -> dict[str, Any]:
    limits = {"max_prompt_length": tokens.max_prompt_length, "max_length": tokens.max_length}
    lost = [
        [
            part,
            round(tokens.lengths[part].mean * tokens.lengths[part].n),
            tokens.n_tokens_lost[part],
            tokens.n_stops_lost.get(part, ABSENT),
        ]
        for part in tokens.lengths
    ]
    cut = [[words(name), n, _share(n, tokens.n_counted)] for name, n in tokens.cut.items()]
    return {
        "intro": f"{tokens.n_counted:,} of {tokens.n_pairs:,} pairs were tokenised. Chat template: {tokens.template}. The longer "
        f"response, in tokens, is chosen in {percent(tokens.longer_is_chosen)} % of the pairs.",
        "lengths": _lengths(tokens.lengths, "tokens", limits),
        "cut": Table(["pairs", "count", "share"], cut),
        "lost": Table(["", "tokens in total", "tokens cut off", "without end of turn"], lost),
    }


def _lengths(histograms: dict[str, CountHistogram], unit: str, limits: dict[str, int]) -> dict[str, Any]:
    figure, axes = new_figure(WIDE, 2.8)
    for n, (part, histogram) in enumerate(histograms.items()):
        edges = [2**i for i in range(len(histogram.counts))]
        # Bin 0, of texts without any length, has no place on a logarithmic axis.
        axes.stairs(histogram.counts[1:], edges, label=part, linewidth=1.8, linestyle=("-", "-", "--")[n % 3])
    for (name, limit), style in zip(limits.items(), (":", "-."), strict=False):
        axes.axvline(limit, color=INK, linewidth=1, linestyle=style, label=f"{name}: {limit:,}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(unit)
    axes.set_ylabel("pairs")
    axes.legend(**OUTSIDE | {"ncols": 2 if limits else 3})
    caption = f"Lengths in {unit}"
    note = "Each bin is twice as wide as the one before." + (
        " Vertical lines: the limits in the config." if limits else ""
    )
    rows = [[part, f"{h.mean:,.0f}", h.max] for part, h in histograms.items()]
    return {
        "picture": Picture(caption, figure_svg(figure, caption), note),
        "figures": Table(["", f"mean {unit}", "longest"], rows),
    }


def _share(n: int, of: int) -> str:
    return f"{n / of:.1%}" if of else ABSENT
