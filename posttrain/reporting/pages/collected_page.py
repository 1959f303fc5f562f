"""Collected preference pairs: counts on the terminal, and a page with figures and examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.reporting.drawing import OUTSIDE, WIDE, figure_svg, new_figure
from posttrain.reporting.html import Picture, Table, first_line, render

N_SHOWN = 20
SCORES = "Scores of the chosen and the rejected answers"
REASONS = {
    "few_answers": "fewer than two finished answers",
    "identical": "all answers have the same text",
    "equal_scores": "all scores are equal",
    "small_margin": "no two scores differ by pairs.min_margin",
    "lengths_differ": "no two answers fit pairs.max_length_ratio",
    "judge_failed": "an answer could not be judged",
    "request_failed": "the endpoint did not answer",
    "no_json": "the reply is not the JSON object that was asked for",
    "answer_too_short": "extract or answer shorter than documents.min_answer_chars",
    "no_whole_sentences": "the extract does not begin and end like a sentence",
    "not_in_passage": "the extract is not in the passage word for word",
    "answer_copied": "the answer repeats the passage (documents.max_overlap)",
    "held_out": "the instruction is a held-out prompt",
    "duplicate_instruction": "another passage gave the same instruction",
}
"""Why a prompt has no pair."""


def summary_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the counts of a collection as lines."""
    yield (
        f"{report['n_pairs']:,} pairs from {report['n_prompts_with_pairs']:,} of {report['n_prompts']:,} prompts, judged by "
        f"{report['judge']}"
    )
    for name, counts in report["models"].items():
        score = "" if counts["mean_score"] is None else f", mean score {counts['mean_score']:.3f}"
        unused = f"{counts['n_unfinished']:,} unfinished, {counts['n_empty']:,} empty"
        yield f"{name}: {counts['n_answers']:,} answers ({unused}){score}, chosen in {counts['n_chosen']:,} pairs"
    for reason, n in report["without_pairs"].items():
        yield f"No pair for {n:,} prompts: {REASONS.get(reason, reason)}"
    for reason, n in {**report["prompts_dropped"], **report["filters"]}.items():
        yield f"Not used: {n:,} {reason}"
    if report["n_failures"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in report["failures"].items())
        yield f"The judge failed {report['n_failures']:,} times: {reasons}"
    if report["mean_margin"] is not None:
        yield f"Mean margin {report['mean_margin']:.3f}"
    if report["longer_chosen"] is not None:
        yield (
            f"Chosen {report['chosen_chars']:.0f} characters, rejected {report['rejected_chars']:.0f}; the chosen answer is the "
            f"longer one in {report['longer_chosen']:.0%}"
        )


def collected_page(table: pa.Table, report: Mapping[str, Any], title: str = "Collected preference pairs") -> str:
    """Return the page of collected pairs.

    Args:
        table: the pairs, with the columns prompt, chosen, rejected, score_chosen, score_rejected and provenance.
        report: the fields of their report.
    """
    rows = table.slice(0, N_SHOWN).to_pylist()
    return render(
        "collected.html.jinja",
        title=title,
        summary=list(summary_lines(report)),
        models=Table(
            ["model", "answers", "unfinished", "empty", "mean score", "mean tokens", "pairs with its answer as chosen"],
            [
                [
                    name,
                    c["n_answers"],
                    c["n_unfinished"],
                    c["n_empty"],
                    _number(c["mean_score"]),
                    _number(c["mean_tokens"]),
                    c["n_chosen"],
                ]
                for name, c in report["models"].items()
            ],
        ),
        outcomes=Table(
            ["prompts", "count"],
            [
                ["with pairs", report["n_prompts_with_pairs"]],
                *([f"none: {REASONS.get(reason, reason)}", n] for reason, n in report["without_pairs"].items()),
            ],
        ),
        picture=_scores(table),
        pairs=[_example(row) for row in rows],
        n_pairs=table.num_rows,
    )


def _scores(table: pa.Table) -> Picture | None:
    """Return a histogram of the scores; None where the pairs have none."""
    values = [table[name].drop_null().to_numpy() for name in ("score_chosen", "score_rejected")]
    if not len(values[0]):
        return None
    figure, axes = new_figure(WIDE)
    ends = np.concatenate(values)
    bins = np.linspace(ends.min(), ends.max() + 1e-9, 25)
    for name, scores in zip(("chosen", "rejected"), values, strict=True):
        axes.hist(scores, bins=bins, alpha=0.6, label=name)
    axes.set_xlabel("score")
    axes.set_ylabel("pairs")
    axes.legend(**OUTSIDE)
    return Picture(
        SCORES, figure_svg(figure, SCORES), "Each pair counts once in each colour. Apart: the judge sees a difference."
    )


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    origin = row["provenance"]
    prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"])
    return {
        "summary": f"{_number(row['score_chosen'])} against {_number(row['score_rejected'])}: "
        f"{first_line(row['prompt'][-1]['content'])}",
        "prompt": prompt,
        "chosen": row["chosen"][-1]["content"],
        "rejected": row["rejected"][-1]["content"],
        "chosen_by": f"{origin['chosen_model']}, score {_number(row['score_chosen'])}",
        "rejected_by": f"{origin['rejected_model']}, score {_number(row['score_rejected'])}",
        "origin": f"judged by {origin['judge']}, collected {origin['collected_at']}, id {origin['id']}",
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
