"""lm-evaluation-harness on a model that is already loaded, or on none, to learn which items a benchmark has."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UserError
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, MetricScores, TaskItems, TaskScores

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from posttrain.config import BenchmarkSection

INCLUDED = re.compile(r"[\w./-]+\.ya?ml\b")
FUNCTIONS = re.compile(r"!function\s+(\w+)\.")


def load_items(sections: Sequence[BenchmarkSection]) -> BenchmarkItems:
    """Return which items the benchmarks have.

    The harness builds all prompts as it does for a model, and they are recorded instead of answered.

    Raises:
        UserError: lm-evaluation-harness is not installed, or a task is unknown or cannot be loaded.
    """
    if not sections:
        return BenchmarkItems(tasks={})
    check_installed()
    from posttrain.evaluation.benchmarks.recorder import Recorder

    tasks: dict[str, TaskItems] = {}
    for section in sections:
        recorder = Recorder()
        found = run_task(recorder, section.model_copy(update={"apply_chat_template": False}))
        documents = documents_of(found)
        if not documents:
            raise UserError(f"evaluation.benchmarks: {section.task} has no items")
        parts = [documents, recorder.prompts, _files_beside(section)]
        digest = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
        tasks[section.name] = TaskItems(section=section, documents=documents, digest=digest)
    return BenchmarkItems(tasks=tasks)


def check_installed() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "evaluation.benchmarks: needs lm-evaluation-harness, which is not installed: run pip install 'posttrain[benchmarks]', "
            "or remove the setting"
        )


@functools.cache
def task_manager(*, with_defaults: bool) -> TaskManager:
    """Return the harness's list of tasks. With its own thousands of tasks this takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_defaults)


def run_task(lm: LM, section: BenchmarkSection) -> dict[str, Any]:
    """Return what the harness found for one benchmark, with every item.

    Raises:
        UserError: the task is unknown or cannot be loaded.
    """
    from lm_eval.evaluator import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if section.is_file and not Path(section.task).is_file():
        raise UserError(f"evaluation.benchmarks: {section.task} does not exist: correct the path")
    manager = task_manager(with_defaults=not section.is_file)
    if not section.is_file and section.task not in manager.all_tasks:
        near = get_close_matches(section.task, manager.all_tasks)
        raise UserError(
            f"evaluation.benchmarks: lm-evaluation-harness has no task {section.task!r}"
            + (f"; similar ones: {', '.join(near)}" if near else "")
            + ". A task of your own is the path of its YAML file"
        )
    try:
        found = simple_evaluate(
            model=lm,
            tasks=[section.task],
            num_fewshot=section.num_fewshot,
            limit=section.limit,
            bootstrap_iters=100,
            apply_chat_template=section.apply_chat_template,
            task_manager=manager,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"evaluation.benchmarks: {section.task} cannot be run: {str(error).splitlines()[0] if str(error) else error!r}. "
            "If its data is on the Hub, download it on a machine with network first, or name a YAML file with local data"
        ) from error
    assert found is not None  # only other ranks than the first get nothing
    return dict(found)


def documents_of(found: Mapping[str, Any]) -> list[str]:
    """Return the digest of each item's document and target, in the order of tasks and items."""
    documents = []
    for task in sorted(found["samples"]):
        by_item = {row["doc_id"]: row for row in found["samples"][task]}
        for item in sorted(by_item):
            row = by_item[item]
            text = f"{task} {row['doc_hash']} {row['target_hash']}"
            documents.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return documents


def scores_of(found: Mapping[str, Any], section: BenchmarkSection, n_cut: int) -> TaskScores:
    """Return the metrics of which more is better and whose value is the mean of a share of each item.

    Raises:
        UserError: there is none.
    """
    samples = found["samples"]
    names = [
        name
        for name in dict.fromkeys(
            f"{metric},{row['filter']}" for rows in samples.values() for row in rows for metric in row["metrics"]
        )
        if all(found["higher_is_better"].get(task, {}).get(name.split(",")[0]) for task in samples)
    ]
    metrics = {name: scores for name in names if (scores := _mean_scores(found, name))}
    if not metrics:
        raise UserError(
            f"evaluation.benchmarks: {section.task} has no metric that is a mean over items from 0 to 1, so its models cannot be "
            f"compared item by item (it has {', '.join(names) or 'none'}): choose another task"
        )
    return TaskScores(metrics=metrics, n_cut=n_cut)


def _mean_scores(found: Mapping[str, Any], name: str) -> MetricScores | None:
    """Return one metric of all items, or None if it is no mean of shares."""
    metric, used = name.split(",")
    items: list[float] = []
    for task in sorted(found["samples"]):
        rows = {row["doc_id"]: row.get(metric) for row in found["samples"][task] if row["filter"] == used}
        values = [rows[item] for item in sorted(rows)]
        if not values or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
            return None
        reported = found["results"][task].get(name)
        if not isinstance(reported, int | float) or abs(reported - sum(values) / len(values)) > 1e-6:
            return None
        items += map(float, values)
    error = None
    if len(found["samples"]) == 1:
        (task,) = found["samples"]
        error = found["results"][task].get(f"{metric}_stderr,{used}")
    is_number = isinstance(error, int | float) and len(items) > 1
    return MetricScores(value=sum(items) / len(items), std_error=error if is_number else None, items=items)


def _files_beside(section: BenchmarkSection) -> list[str]:
    """Return the digest of the YAML file of a task, and of each file beside it that it includes or takes functions from."""
    waiting, found = ([Path(section.task)] if section.is_file else []), {}
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        content = file.read_text(encoding="utf-8")
        found[file] = f"{file.name} {hashlib.sha256(content.encode()).hexdigest()}"
        waiting += [file.parent / name for name in INCLUDED.findall(content)]
        waiting += [file.parent / f"{name}.py" for name in FUNCTIONS.findall(content)]
    return [found[file] for file in sorted(found)]
