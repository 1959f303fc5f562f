"""The results of a label check: on the terminal, as a file of all pairs, and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.errors import UserError
from posttrain.evaluation.label_check.checked_labels import CheckedLabels
from posttrain.evaluation.label_check.noise import LabelNoise
from posttrain.evaluation.labels import percent
from posttrain.reporting.html import Table, first_line, render

N_PRINTED, N_SHOWN = 10, 50
DEFINITION = (
    "A pair is suspicious if DPO, trained without its prompt, moves probability from the chosen response to the rejected one. "
    "The share of swapped labels is what remains after the disagreement that small margins explain."
)


def noise_words(noise: LabelNoise | None, pairs: str) -> str:
    """Return the share of swapped labels in a sentence.

    Args:
        pairs: what the labels belong to, such as `training pairs`.
    """
    if noise is None:
        return f"There are too few {pairs} to estimate the share of swapped labels."
    share = noise.share
    if share.high >= 0.495:
        return (
            f"The share of swapped labels cannot be told from the {noise.n_pairs:,} {pairs}: the model's margins hardly depend on "
            f"the labels ({percent(share)} %)."
        )
    return f"Estimated share of swapped labels among {noise.n_pairs:,} {pairs}: {percent(share)} %."


def label_lines(checked: CheckedLabels, train: Dataset) -> Iterator[str]:
    """Yield the estimate and the most suspicious pairs as lines for a terminal."""
    yield noise_words(checked.noise, "training pairs")
    n_against = int((checked.table["margin_nats"].to_numpy() < 0).sum())
    yield f"The models contradict the labels of {n_against:,} of {checked.table.num_rows:,} pairs. The most suspicious:"
    for row in _suspicious(checked, train, N_PRINTED):
        yield f"  {row['about']}: {first_line(row['prompt'], 80)}"
        yield f"    chosen:   {first_line(row['chosen'], 80)}"
        yield f"    rejected: {first_line(row['rejected'], 80)}"


def label_page(checked: CheckedLabels, train: Dataset, title: str) -> str:
    """Return a page with the estimate and the most suspicious pairs."""
    margins = checked.table["margin_nats"].to_numpy()
    rows = [["scored", len(margins)], ["label contradicted (margin below 0)", int((margins < 0).sum())]]
    if checked.noise is not None:
        p_swapped = checked.table["p_swapped"].to_numpy()
        rows.append(["label more likely swapped than not", int((p_swapped > 0.5).sum())])
    return render(
        "labels.html.jinja",
        title=title,
        estimate=noise_words(checked.noise, "training pairs"),
        definition=DEFINITION,
        figures=Table(["training pairs", "count"], rows),
        pairs=list(_suspicious(checked, train, N_SHOWN)),
    )


def write_labels(checked: CheckedLabels, train: Dataset, path: Path) -> None:
    """Write all scored pairs, the most suspicious first, as Parquet or as JSON lines.

    The file has the columns of a preference dataset, so that a part of it can be a source of `data.sources`.

    Raises:
        UserError: the file cannot be written.
    """
    place = {row_id: i for i, row_id in enumerate(train["id"])}
    order = [place[row_id] for row_id in checked.table["id"].to_pylist()]
    table = train.with_format("arrow")[:].take(pa.array(order, pa.int64()))
    kept = table.select(
        [name for name in ("id", "source", "prompt", "chosen", "rejected", "tools") if name in table.column_names]
    )
    for name in ("margin_nats", "p_swapped", "fold"):
        kept = kept.append_column(name, checked.table[name])
    try:
        if path.suffix == ".parquet":
            pq.write_table(kept, path)
        else:
            Dataset(kept).to_json(path, force_ascii=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another file") from error


def _suspicious(checked: CheckedLabels, train: Dataset, n: int) -> Iterator[dict[str, Any]]:
    """Yield the texts of the pairs with the lowest margins, as long as these are below 0."""
    place = {row_id: i for i, row_id in enumerate(train["id"])}
    for found in checked.table.slice(0, n).to_pylist():
        if found["margin_nats"] >= 0:
            return
        row = train[place[found["id"]]]
        p_swapped = "" if found["p_swapped"] is None else f", {found['p_swapped']:.0%} likely swapped"
        about = f"margin {found['margin_nats']:.1f} nats{p_swapped}"
        prompt, chosen, rejected = (
            "\n\n".join(turn["content"] or "" for turn in row[name]) for name in ("prompt", "chosen", "rejected")
        )
        yield {
            "id": row["id"],
            "source": row["source"],
            "about": about,
            "summary": f"{about}: {first_line(prompt)}",
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
        }
