"""The rounds of a loop side by side: a table on the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import rich.box
import rich.table
from markupsafe import Markup
from rich.console import Console

from posttrain.evaluation.intervals import Estimate
from posttrain.reporting.drawing import WIDE, figure_svg, new_figure
from posttrain.reporting.html import Picture, Table, render
from posttrain.reporting.plain_console import PlainConsole


@dataclass(frozen=True)
class RoundFigures:
    """The figures of one round."""

    number: int
    run: str
    """Name of the run that trained."""
    n_pairs: int | None
    """Collected pairs; None in round 0."""
    accuracy: Estimate
    """Preference accuracy of the new model on the test pairs."""
    reward: Estimate | None
    """Mean true reward of its answers to test prompts (demo only)."""
    win_rate: Estimate | None
    """Of its answers against its opponent's, by the judge or the true reward."""
    collected_score: float | None
    """Mean score, by the judge of the collection, of the answers that were collected from the model before this round."""
    kl_from_sft: float | None
    """KL divergence from the SFT model of round 0, in nats per token; None if it was not measured."""
    n_tokens: Estimate | None
    """Mean length of its answers."""
    promoted: bool
    minutes: float
    """Of both runs."""

    @property
    def verdict(self) -> str:
        """What the gate decided."""
        return "promoted" if self.promoted else "refused"


MEANINGS = [
    ("accuracy", "preference accuracy of the round's model on the test pairs of `data`, which no round trains on"),
    ("reward", "mean true reward of its sampled answers to the test prompts (demo only)"),
    ("win rate", "of its answers against those of the model in production, or of SFT in round 0"),
    ("collected score", "mean score of the answers of the production model that the round collected, by the judge"),
    ("KL from SFT", "divergence from the SFT model of round 0, in nats per token"),
    ("tokens", "mean length of its answers"),
]
HEADER = (
    "round",
    "pairs",
    "accuracy",
    "reward",
    "win rate",
    "collected score",
    "KL from SFT",
    "tokens",
    "verdict",
    "minutes",
)


def rounds_table(rounds: Sequence[RoundFigures]) -> Table:
    """Return the figures of all rounds, one row for each."""
    rows = [
        [
            r.number,
            "-" if r.n_pairs is None else r.n_pairs,
            _percent(r.accuracy),
            _plain(r.reward),
            "-" if r.win_rate is None else _percent(r.win_rate),
            "-" if r.collected_score is None else f"{r.collected_score:.2f}",
            "-" if r.kl_from_sft is None else f"{r.kl_from_sft:.2f}",
            _plain(r.n_tokens, 1),
            r.verdict,
            f"{r.minutes:.1f}",
        ]
        for r in rounds
    ]
    return Table(HEADER, rows)


def print_rounds(rounds: Sequence[RoundFigures], console: Console | None = None) -> None:
    """Print the figures, one column for each round."""
    table = rounds_table(rounds)
    printed = rich.table.Table(box=rich.box.SIMPLE)
    for i, name in enumerate(("", *(f"round {r.number}" for r in rounds))):
        printed.add_column(name, justify="right" if i else "left")
    for i, name in enumerate(table.header[1:], start=1):
        printed.add_row(str(name), *(str(row[i]) for row in table.rows))
    (console or PlainConsole()).print(printed)


def rounds_page(rounds: Sequence[RoundFigures], title: str) -> str:
    """Return the page of a loop."""
    pictures = [
        Picture(caption, found, note)
        for caption, note, get in (
            (
                "Reward of the answers",
                "Mean true reward of sampled answers to test prompts. Lines are intervals.",
                lambda r: r.reward,
            ),
            ("Preference accuracy", "On the test pairs, which no round trains on.", lambda r: r.accuracy),
            ("Length of the answers", "In tokens.", lambda r: r.n_tokens),
        )
        if (found := _drawn(rounds, caption, get)) is not None
    ]
    return render(
        "rounds.html.jinja",
        title=title,
        table=rounds_table(rounds),
        meanings=MEANINGS,
        pictures=pictures,
        runs=Table(["round", "run"], [[r.number, r.run] for r in rounds]),
    )


def _drawn(
    rounds: Sequence[RoundFigures], caption: str, get: Callable[[RoundFigures], Estimate | None]
) -> Markup | None:
    values = [(r.number, found, r.promoted) for r in rounds if (found := get(r)) is not None]
    if not values:
        return None
    figure, axes = new_figure(WIDE)
    numbers = [number for number, _, _ in values]
    axes.plot(numbers, [found.value for _, found, _ in values], color="#3b7dd8", linewidth=1)
    for number, found, promoted in values:
        axes.plot([number, number], [found.low, found.high], color="#3b7dd8", linewidth=1)
        axes.plot([number], [found.value], "o", color="#3b7dd8", markerfacecolor="#3b7dd8" if promoted else "none")
    axes.set_xticks(numbers)
    axes.set_xlabel("round (hollow: refused)")
    return figure_svg(figure, caption)


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def _plain(found: Estimate | None, digits: int = 2) -> str:
    return "-" if found is None else f"{found.value:.{digits}f} ({found.low:.{digits}f}-{found.high:.{digits}f})"
