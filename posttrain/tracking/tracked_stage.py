"""A step's place in MLflow: what it records is gathered, and carried to the server beside the work."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from posttrain.config.flatten import flatten
from posttrain.errors import UserError
from posttrain.tracking.connection import reason, without_password
from posttrain.tracking.runs import STARTED_TAG, Record, StepRun, untold

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SEND_EVERY_S = 2.0
RETRY_AFTER_S = 30.0  # doubled with every failure, up to
RETRY_AT_MOST_AFTER_S = 300.0
UI_PORT = 5000
OUTAGE_TAG = "posttrain.outage"


def default_tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite store in `.mlflow/` under the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_local_folder() / 'mlflow.db'}"


def package_versions() -> dict[str, str]:
    """The installed version of each package that can change a result; packages that are absent are left out."""
    versions = {}
    for package in ("zenml", "mlflow", "torch", "transformers", "trl", "peft", "datasets"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def published_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """One log of a Trainer under the names it is published by: `train/…`, `validation/…` or, at the end, `whole_training/…`.

    A log of validation or of the end repeats `epoch` and the like from the step's own log; those are published once.
    """
    if "loss" in logs:
        space, figures = "train", dict(logs)
    elif "train_runtime" in logs:
        space = "whole_training"  # MLflow sorts by name: the curves come before it
        figures = {k.removeprefix("train_"): v for k, v in logs.items() if k.startswith("train_")}
    else:
        space = "validation"
        figures = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_")}
    return {
        f"{space}/{_METRIC_NAMES.get(name, name.replace('/', '_'))}": float(value)
        for name, value in figures.items()
        if isinstance(value, int | float)
    }


_METRIC_NAMES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "runtime": "runtime_s",
}


def metrics_callback(stage: TrackedStage) -> TrainerCallback:
    """A callback that records every log of an SFT or DPO Trainer, at the step it belongs to."""
    from transformers import TrainerCallback

    class MetricsCallback(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                stage.log_metrics(published_metrics(logs or {}), step=state.global_step)

    return MetricsCallback()


def _unknown(pipeline_run: str, step: str) -> str | None:
    return None


@dataclass(frozen=True)
class Tracker:
    """Which MLflow runs belong to one pipeline run. Holds no connection, so it can be passed on and pickled.

    Attributes:
        uri: of the tracking server or database.
        experiment: name of the MLflow experiment; created where it does not exist.
        pipeline_run: unique id of the pipeline run; a retry of the same run has the same.
        run_name: what a person sees as the name of the parent run.
        ended: tells of a pipeline run and a step how that step has ended, FINISHED, FAILED or KILLED; None where it goes on
            or is not known.
    """

    uri: str = field(repr=False)  # may hold a password
    experiment: str
    pipeline_run: str
    run_name: str
    ended: Callable[[str, str], str | None] = field(default=_unknown, repr=False)

    def stage(self, step: str) -> TrackedStage:
        """A nested run for a step that trains; it replaces the one that an earlier attempt of this step left."""
        return TrackedStage(self, step, nested=True)

    def parent(self, step: str) -> TrackedStage:
        """The parent run, for a step without a nested run of its own."""
        return TrackedStage(self, step, nested=False)

    @property
    def shown_uri(self) -> str:
        """The URI without user and password."""
        return without_password(self.uri)


class TrackedStage:
    """One step's place in MLflow, open inside a `with`: RUNNING, then FINISHED or, after an exception, FAILED.

    Nothing here raises because of MLflow. Not for use by several threads.
    """

    def __init__(self, tracker: Tracker, step: str, nested: bool) -> None:
        self.tracker = tracker
        self._step = step
        self._mlflow = StepRun(tracker, step, nested)
        self._waiting: list[Record] = []
        self._under_way: list[Record] = []  # belongs to the worker until it has answered
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._answer: Future[None] | None = None
        self._pause_s = SEND_EVERY_S
        self._next_send_s = 0.0  # by the monotonic clock
        self._had_outage = False
        self.unsent: Path | None = None  #: after the end: the file of what MLflow has not taken, if any

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record settings, flattened. A parameter that is recorded already keeps its first value."""
        self._add(*(Record("param", key, value) for key, value in flatten(values).items()))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record figures at an optimisation step."""
        self._add(*(Record("metric", key, float(value), step) for key, value in values.items()))

    def log_text(self, text: str, path: str) -> None:
        """Record a text as the artifact at `path`, e.g. `reports/data_report.html`."""
        self._add(Record("artifact", path, text))

    def log_dict(self, values: Mapping[str, Any], path: str) -> None:
        """Record plain values as the JSON artifact at `path`, e.g. `reports/data_report.json`."""
        self.log_text(json.dumps(values, indent=2, ensure_ascii=False, default=str), path)

    def log_dataset(self, name: str, digest: str, n_rows: int, source: str, context: str) -> None:
        """Record a dataset as an input of the run; `context` says what for, e.g. `training`."""
        dataset = {"digest": digest, "n_rows": n_rows, "source": source, "context": context}
        self._add(Record("dataset", name, dataset))

    def fail(self, reason: str) -> None:
        """Mark the nested run FAILED though the step goes on: its failure is a result, and not one of the whole run."""
        self.set_tags({"failure": reason})
        self._mlflow.has_failed = True

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Record what may change later; the last value counts."""
        self._add(*(Record("tag", key, value) for key, value in values.items()))

    def link(self) -> str:
        """Where a browser shows the experiment's runs: at the server, or at the one that `serve_command` starts."""
        uri = self.tracker.shown_uri
        if self._mlflow.experiment_id is None:
            return f"MLflow at {uri}, which has not answered yet"
        # MLflow 3 opens its view of language model traces where nothing else is said, and folds nested runs away (and
        # their curves with them) where runs are sorted as usual, by their start.
        page = (
            f"#/experiments/{self._mlflow.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
            f"&orderByKey=tags.%60{STARTED_TAG}%60&orderByAsc=false"
        )
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/{page}"
        return f"http://127.0.0.1:{UI_PORT}/{page}"

    @property
    def serve_command(self) -> str | None:
        """What serves a store that is a database; None where a server runs already."""
        uri = self.tracker.shown_uri
        return None if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port {UI_PORT}"

    def __enter__(self) -> TrackedStage:
        untold.pop((self.tracker.pipeline_run, self._step), None)
        self._send()
        self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._waiting.append(Record("status", self._step, status))
        self._receive()
        self._send()
        self._receive()
        self._worker.shutdown()
        if any(record.kind == "status" for record in self._waiting):
            untold[self.tracker.pipeline_run, self._step] = status
        if self._waiting:
            self._write_unsent()

    def _add(self, *records: Record) -> None:
        self._waiting.extend(records)
        if self._answer and self._answer.done():
            self._receive()
        if not self._answer and time.monotonic() >= self._next_send_s:
            self._send()

    def _send(self) -> None:
        """Hand what is waiting to the worker."""
        self._under_way, self._waiting = self._waiting, []
        self._answer = self._worker.submit(self._mlflow.deliver, self._under_way)

    def _receive(self) -> None:
        """Wait for the worker's answer, if one is due, and take back what it could not deliver."""
        if not self._answer:
            return
        # Whatever the error is: the artifact store behind MLflow raises its own library's errors (boto3's, say), and
        # none of them may end the work.
        failure = self._answer.exception()
        self._answer = None
        self._waiting[:0] = self._under_way
        if failure:
            self._report_outage(failure)
            self._pause_s = min(max(2 * self._pause_s, RETRY_AFTER_S), RETRY_AT_MOST_AFTER_S)
        else:
            if self._pause_s > SEND_EVERY_S:
                logger.warning("MLflow at %s takes records again; nothing is lost.", self.tracker.shown_uri)
            self._pause_s = SEND_EVERY_S
        self._next_send_s = time.monotonic() + self._pause_s

    def _report_outage(self, failure: BaseException) -> None:
        """Say once, here and as soon as possible in MLflow, that records are late."""
        if self._had_outage:
            return
        self._had_outage = True
        logger.warning(
            "MLflow at %s does not take the records of %s: %s. The work goes on and keeps them; "
            "what MLflow has not taken by the end will be in %s.",
            self.tracker.shown_uri, self._step, reason(failure), self._unsent_path(),
        )  # fmt: skip
        self._waiting.append(Record("tag", OUTAGE_TAG, f"since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"))

    def _unsent_path(self) -> Path:
        name = re.sub(r"[^\w.-]", "_", f"{self.tracker.run_name}-{self._step}")
        return _local_folder() / "unsent" / f"{name}.jsonl"

    def _write_unsent(self) -> None:
        """Write what MLflow has not taken, one JSON object a line; the first line says which run it belongs to."""
        tracker, path = self.tracker, self._unsent_path()
        run = {"experiment": tracker.experiment, "pipeline_run": tracker.pipeline_run, "run_name": tracker.run_name}
        step = {"step": self._step, "nested": self._mlflow.nested, "started": self._mlflow.started}
        lines = [run | step, *map(asdict, self._waiting)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            logger.warning(
                "%s: cannot be written (%s): %d records of %s are lost.",
                path, error.strerror, len(self._waiting), self._step,
            )  # fmt: skip
            return
        self.unsent = path
        logger.warning(
            "%s: %d records of %s that MLflow has not taken. When it is back: posttrain send %s",
            path, len(self._waiting), self._step, shlex.quote(str(path)),
        )  # fmt: skip


def send(unsent: str, uri: str) -> int:
    """Delivers what a step has left in a file (`Stage.unsent`) to its MLflow runs, and returns how many records that were.

    Sent twice, it changes nothing more.

    Raises:
        UserError: it is no such file, or MLflow does not take it.
    """
    try:
        run, *records = [json.loads(line) for line in unsent.split("\n") if line]
        step, nested, started = run.pop("step"), run.pop("nested"), run.pop("started")
        tracker = Tracker(uri, **run)
        waiting = [Record(**record) for record in records]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("not a file of records that MLflow has not taken: name one of .mlflow/unsent") from error
    runs = StepRun(tracker, step, nested, started)
    try:
        runs.deliver(waiting)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {tracker.shown_uri} does not take the records: {reason(error)}: send them again when it does"
        ) from error
    return len(records)


def _local_folder() -> Path:
    return Path.cwd() / ".mlflow"
