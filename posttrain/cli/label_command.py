"""`posttrain label-check`: the training pairs whose labels are probably wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli.options import FILE, set_option
from posttrain.cli.outcome import clean_errors, write_file
from posttrain.config import RunConfig, load_config

if TYPE_CHECKING:
    from posttrain.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class _Options:
    folds: int
    out: Path
    html: Path | None
    work: Path | None
    yes: bool
    assignments: tuple[str, ...]


@click.command("label-check")
@click.argument("config", type=FILE)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    default=3,
    show_default=True,
    help="Number of parts of the training pairs. DPO is trained once for each; more parts rank better.",
)
@click.option(
    "--out",
    type=FILE,
    default=Path("label-check.parquet"),
    show_default=True,
    help="Write all training pairs with their margins here: .parquet or .jsonl.",
)
@click.option("--html", type=FILE, help="Also write a page with the most suspicious pairs to this file.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for finished folds; an interrupted check goes on from there. Default: in the cache folder.",
)
@click.option("--yes", is_flag=True, help="Do not ask before training.")
@set_option
def label_check(config: Path, **given: Any) -> None:
    """Rank the training pairs of CONFIG whose labels are probably wrong.

    Trains DPO several times, each time without a part of the prompts, and scores that part. So no pair is judged by a model
    that has seen its label. The cost is printed first. The file lists every training pair, the most suspicious first.
    """
    options = _Options(**given)
    if options.out.suffix not in (".parquet", ".jsonl"):
        raise click.UsageError(f"--out {options.out}: name a file that ends in .parquet or .jsonl")
    with clean_errors(), TemporaryDirectory(prefix="posttrain-label-check-") as scratch:
        run = load_config(config, options.assignments)
        from posttrain.evaluation.label_check.cross_fitting import check_labels, cost, load_inputs
        from posttrain.reporting.pages.label_page import label_lines, label_page, write_labels
        from posttrain.storage.cache import cache_dir

        preferences, inputs = load_inputs(*_start(run, Path(scratch)), options.folds)
        click.echo(f"label-check trains: {'; '.join(cost(inputs))}.")
        if not options.yes:
            click.confirm("Continue?", abort=True)
        checked = check_labels(inputs, options.work or cache_dir() / "label-check", run.evaluation.confidence)
        write_labels(checked, preferences.train, options.out)
        if options.html:
            write_file(options.html, label_page(checked, preferences.train, f"Labels of {config.name}"))
    for line in label_lines(checked, preferences.train):
        click.echo(line)
    click.echo(f"Written: {options.out}{f' and {options.html}' if options.html else ''}")


def _start(run: RunConfig, folder: Path) -> tuple[RunConfig, Checkpoint | None]:
    """Return the config with the base of the model that DPO starts from, and that model; None if SFT is trained."""
    from posttrain.models.base import resolve_base
    from posttrain.models.base_checkpoint import base_checkpoint
    from posttrain.orchestration.dpo_start import start_of

    model, start = start_of(run)
    checkpoint = start.load() if start else None
    run = run.model_copy(update={"model": model})
    return run, base_checkpoint(resolve_base(model), model, folder) if start and checkpoint is None else checkpoint
