"""Records of a step, collected and sent to MLflow in the background."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from posttrain.config.flatten import flatten
from posttrain.errors import UserError
from posttrain.tracking.connection import checked_uri, reason
from posttrain.tracking.dataset_origin import DatasetOrigin, as_record
from posttrain.tracking.runs import STARTED_TAG, Record, RunIdentity, StepRun, untold

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SEND_EVERY_S = 2.0
RETRY_AFTER_S = 30.0  # doubled with every failure, up to
RETRY_AT_MOST_AFTER_S = 300.0
UI_PORT = 5000
OUTAGE_TAG = "posttrain.outage"


def default_tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or the URI of a SQLite store in `.mlflow/` in the current folder."""
    return checked_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_local_folder() / 'mlflow.db'}")


def package_versions() -> dict[str, str]:
    """Return the version of each installed package that can change results."""
    versions = {}
    for package in ("zenml", "mlflow", "torch", "transformers", "trl", "peft", "datasets"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def published_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return a log of a Trainer under its published names: `train/…`, `validation/…` or, at the end, `whole_training/…`.

    Values such as `epoch`, which validation logs repeat from the step's own log, are left out.
    """
    if "loss" in logs:
        space, figures = "train", dict(logs)
    elif "train_runtime" in logs:
        space = "whole_training"  # MLflow sorts by name, so the curves come first
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
    """Return a callback that records every log of an SFT or DPO Trainer at its step."""
    from transformers import TrainerCallback

    class MetricsCallback(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                stage.log_metrics(published_metrics(logs or {}), step=state.global_step)

    return MetricsCallback()


class Tracker(RunIdentity):
    """Gives the stages of one pipeline run, which record to its MLflow runs. It has no connection, so it can be pickled."""

    def stage(self, step: str) -> TrackedStage:
        """Return a stage with a nested run, which replaces that of an earlier attempt of the step."""
        return TrackedStage(self, step, nested=True)

    def parent(self, step: str) -> TrackedStage:
        """Return a stage that records to the parent run, for a step without a nested run."""
        return TrackedStage(self, step, nested=False)


class TrackedStage:
    """Records of one step, as a context manager: RUNNING, then FINISHED or, after an exception, FAILED.

    Failures of MLflow are logged and never raised. Not thread-safe.
    """

    def __init__(self, tracker: Tracker, step: str, nested: bool) -> None:
        self.tracker = tracker
        self._step = step
        self._mlflow = StepRun(tracker, step, nested)
        self._waiting: list[Record] = []
        self._under_way: list[Record] = []  # owned by the worker until it has finished
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._answer: Future[None] | None = None
        self._pause_s = SEND_EVERY_S
        self._next_send_s = 0.0  # by the monotonic clock
        self._had_outage = False
        self.unsent: Path | None = None  #: after the end: the file with records that were not sent, if any

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record settings, flattened. A parameter that is already recorded keeps its value."""
        self._add(*(Record("param", key, value) for key, value in flatten(values).items()))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at an optimizer step."""
        self._add(*(Record("metric", key, float(value), step) for key, value in values.items()))

    def log_text(self, text: str, path: str) -> None:
        """Record a text as the artifact at `path`, e.g. `reports/data_report.html`."""
        self._add(Record("artifact", path, text))

    def log_dict(self, values: Mapping[str, Any], path: str) -> None:
        """Record plain values as the JSON artifact at `path`, e.g. `reports/data_report.json`."""
        self.log_text(json.dumps(values, indent=2, ensure_ascii=False, default=str), path)

    def log_dataset(self, name: str, digest: str, n_rows: int, origin: DatasetOrigin, context: str) -> None:
        """Record a dataset as an input of the run. `context` is its purpose, e.g. `training`."""
        self._add(Record("dataset", name, as_record(digest, n_rows, origin, context)))

    def fail(self, reason: str) -> None:
        """Mark the nested run as FAILED without failing the step and the parent run."""
        self.set_tags({"failure": reason})
        self._mlflow.has_failed = True

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Record tags. A later value replaces an earlier one."""
        self._add(*(Record("tag", key, value) for key, value in values.items()))

    def link(self) -> str:
        """Return the URL of the experiment's runs: at the server, or at the one that `serve_command` starts."""
        uri = self.tracker.shown_uri
        if self._mlflow.experiment_id is None:
            return f"MLflow at {uri} (no answer yet)"
        # By default MLflow 3 opens its view of traces, and it collapses nested runs, with their curves, if runs are sorted by
        # start time.
        page = (
            f"#/experiments/{self._mlflow.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
            f"&orderByKey=tags.%60{STARTED_TAG}%60&orderByAsc=false"
        )
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/{page}"
        return f"http://127.0.0.1:{UI_PORT}/{page}"

    @property
    def serve_command(self) -> str | None:
        """The command that serves a database store; None if the store is a server."""
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
        """Pass the waiting records to the worker."""
        self._under_way, self._waiting = self._waiting, []
        self._answer = self._worker.submit(self._mlflow.deliver, self._under_way)

    def _receive(self) -> None:
        """Wait for the worker, if it is sending, and take back the records that it could not send."""
        if not self._answer:
            return
        # Any exception: artifact stores raise those of their own libraries (e.g. boto3), and none may end the training.
        failure = self._answer.exception()
        self._answer = None
        self._waiting[:0] = self._under_way
        if failure:
            self._report_outage(failure)
            self._pause_s = min(max(2 * self._pause_s, RETRY_AFTER_S), RETRY_AT_MOST_AFTER_S)
        else:
            if self._pause_s > SEND_EVERY_S:
                logger.warning("MLflow at %s accepts records again; none were lost.", self.tracker.shown_uri)
            self._pause_s = SEND_EVERY_S
        self._next_send_s = time.monotonic() + self._pause_s

    def _report_outage(self, failure: BaseException) -> None:
        """Report the first outage in the log and, as soon as possible, in MLflow."""
        if self._had_outage:
            return
        self._had_outage = True
        logger.warning(
            "MLflow at %s does not accept the records of %s: %s. The step continues and keeps them; "
            "records that cannot be sent by its end will be written to %s.",
            self.tracker.shown_uri, self._step, reason(failure), self._unsent_path(),
        )  # fmt: skip
        self._waiting.append(Record("tag", OUTAGE_TAG, f"since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"))

    def _unsent_path(self) -> Path:
        name = re.sub(r"[^\w.-]", "_", f"{self.tracker.run_name}-{self._step}")
        return _local_folder() / "unsent" / f"{name}.jsonl"

    def _write_unsent(self) -> None:
        """Write the records that were not sent, one JSON object per line. The first line identifies the run."""
        tracker, path = self.tracker, self._unsent_path()
        run = {"experiment": tracker.experiment, "pipeline_run": tracker.pipeline_run, "run_name": tracker.run_name}
        step = {"step": self._step, "nested": self._mlflow.nested, "started": self._mlflow.started}
        lines = [run | step, *map(asdict, self._waiting)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            logger.warning(
                "%s: cannot be written (%s), so %d records of %s are lost.",
                path, error.strerror, len(self._waiting), self._step,
            )  # fmt: skip
            return
        self.unsent = path
        logger.warning(
            "%s: contains %d records of %s that MLflow did not accept. To send them later: posttrain send %s",
            path, len(self._waiting), self._step, shlex.quote(str(path)),
        )  # fmt: skip


def send(unsent: str, uri: str) -> int:
    """Send the records in a file (`TrackedStage.unsent`) to their MLflow runs and return their number.

    Sending a file twice has no further effect.

    Args:
        unsent: content of the file.
        uri: URI of the tracking server or database.

    Raises:
        UserError: the text is not such a file, or MLflow does not accept the records.
    """
    try:
        run, *records = [json.loads(line) for line in unsent.split("\n") if line]
        step, nested, started = run.pop("step"), run.pop("nested"), run.pop("started")
        tracker = Tracker(uri, **run)
        waiting = [Record(**record) for record in records]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("not a file of unsent MLflow records: name a file in .mlflow/unsent") from error
    runs = StepRun(tracker, step, nested, started)
    try:
        runs.deliver(waiting)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {tracker.shown_uri} does not accept the records ({reason(error)}): try again later"
        ) from error
    return len(records)


def _local_folder() -> Path:
    return Path.cwd() / ".mlflow"
