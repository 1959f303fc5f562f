"""What a pipeline run leaves in MLflow: one parent run and a nested run a training stage.

    tracker = Tracker(default_tracking_uri(), "dpo_pipeline", pipeline_run="6f1c…", run_name="dpo-2026_11_21")
    with tracker.stage("train_dpo") as stage:
        stage.log_params({"dpo": {"beta": 0.1}})
        trainer.add_callback(metrics_callback(stage))

A stage gathers its records, and a thread of its own carries them to the server every two seconds: a slow server does
not slow the training, and a dead one does not end it. While the server is away the records are kept; what it has not
taken by the end is written to a file.

Every step writes its state into a tag of its run and of the parent run: `posttrain.step.train_dpo` is RUNNING, with
the process it runs in, then FINISHED, FAILED or KILLED. The state of a run follows from those of its steps. A step
whose process has died is found out when the next stage opens on the same host. What goes on in other hosts cannot be
seen from here: whoever knows it tells the tracker (`Tracker.ended`).
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from posttrain.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SEND_EVERY_S = 2.0
RETRY_AFTER_S = 30.0  # doubled with every failure, up to
RETRY_AT_MOST_AFTER_S = 300.0
UI_PORT = 5000
MAX_VALUE_CHARS = 500  # of a parameter: the limit of servers before MLflow 2.8; later ones take more
DIGEST_CHARS = 16  # of a dataset, to be read; MLflow takes 36, and the whole digest stands in its profile

PIPELINE_RUN_TAG = "posttrain.pipeline_run"
STAGE_TAG = "posttrain.stage"
STARTED_TAG = "posttrain.started"
STEP_TAG = "posttrain.step."
OUTAGE_TAG = "posttrain.outage"
PARENT_TAG = "mlflow.parentRunId"

# How many records of a kind go into one request, in the order in which the kinds are sent. Artifacts come last: they
# may lie in another store, whose failure must keep back neither the curves nor how the step ended.
BATCH_SIZES = {"param": 100, "tag": 100, "dataset": 100, "metric": 1000, "status": 1, "artifact": 1}

# Steps of this process that ended while the server was away, and how: told when the next stage opens.
_untold: dict[tuple[str, str], str] = {}


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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: `{"dpo": {"beta": 0.1}}` is `{"dpo.beta": "0.1"}`.

    A list of plain values stays one parameter, a list of mappings is numbered (`data.sources.0.path`). Text stays as
    it is, other values are written as JSON (`null`, `true`). Characters that MLflow forbids in names become `_`, and
    values are cut to 500 characters.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w.\- /]", "_", str(key))
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        flat[name] = text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"
    return flat


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


def metrics_callback(stage: Stage) -> TrainerCallback:
    """A callback that records every log of an SFT or DPO Trainer, at the step it belongs to."""
    from transformers import TrainerCallback

    class MetricsCallback(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                stage.log_metrics(published_metrics(logs or {}), step=state.global_step)

    return MetricsCallback()


def _unknown(pipeline_run: str, step: str) -> str | None:
    return None


def without_password(text: str) -> str:
    """A text in which no URI has a user and a password any more."""
    return re.sub(r"//[^/\s]*@", "//", text)


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

    def stage(self, step: str) -> Stage:
        """A nested run for a step that trains; it replaces the one that an earlier attempt of this step left."""
        return Stage(self, step, nested=True)

    def parent(self, step: str) -> Stage:
        """The parent run, for a step without a nested run of its own."""
        return Stage(self, step, nested=False)

    @property
    def shown_uri(self) -> str:
        """The URI without user and password."""
        return without_password(self.uri)


@dataclass(frozen=True)
class Record:
    """One thing to be recorded. `key` is a name or, for an artifact, a path; `timestamp` is in milliseconds."""

    kind: str
    key: str
    value: Any
    step: int = 0
    timestamp: int = field(default_factory=lambda: int(time.time() * 1000))


class Stage:
    """One step's place in MLflow, open inside a `with`: RUNNING, then FINISHED or, after an exception, FAILED.

    Nothing here raises because of MLflow. Not for use by several threads.
    """

    def __init__(self, tracker: Tracker, step: str, nested: bool) -> None:
        self.tracker = tracker
        self._step = step
        self._mlflow = _StepRun(tracker, step, nested)
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

    def __enter__(self) -> Stage:
        _untold.pop((self.tracker.pipeline_run, self._step), None)
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
            _untold[self.tracker.pipeline_run, self._step] = status
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
    runs = _StepRun(tracker, step, nested, started)
    try:
        runs.deliver(waiting)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {tracker.shown_uri} does not take the records: {reason(error)}: send them again when it does"
        ) from error
    return len(records)


class _StepRun:
    """A step's runs as MLflow has them. Every method may raise whatever MLflow or a store behind it raises."""

    def __init__(self, tracker: Tracker, step: str, nested: bool, started: int | None = None) -> None:
        """Nothing is asked of MLflow yet.

        Args:
            started: in milliseconds, of a step that is over, whose runs are found again; None: now, and its runs are new.
        """
        self._tracker = tracker
        self._step = step
        self.nested = nested
        self._is_over = started is not None
        self.started = int(time.time() * 1000) if started is None else started
        self._client: MlflowClient
        self._is_open = False
        self._run_ids: list[str] = []  # the run that the records belong to and, if that one is nested, its parent
        self.experiment_id: str | None = None
        self.has_failed = False  # the nested run, though its step goes on

    def deliver(self, records: list[Record]) -> None:
        """Send records and take them out of the list; what is left after an error has not arrived."""
        self._open()
        records.sort(key=lambda record: list(BATCH_SIZES).index(record.kind))
        while records:
            kind, same_kind = next(groupby(records, key=attrgetter("kind")))
            batch = list(islice(same_kind, BATCH_SIZES[kind]))
            self._deliver_batch(kind, batch)
            del records[: len(batch)]

    def _deliver_batch(self, kind: str, batch: list[Record]) -> None:
        from mlflow.entities import Metric, RunTag

        client, run_id = self._client, self._run_ids[0]
        if kind == "param":
            self._deliver_params(batch)
        elif kind == "tag":
            client.log_batch(run_id, tags=[RunTag(r.key, r.value) for r in batch])
        elif kind == "dataset":
            client.log_inputs(run_id, [_dataset_input(r.key, **r.value) for r in batch])
        elif kind == "metric":
            client.log_batch(run_id, metrics=[Metric(r.key, r.value, r.timestamp, r.step) for r in batch])
        elif kind == "status":
            self._set_state(batch[0].value)
        else:
            client.log_text(run_id, batch[0].value, batch[0].key)

    def _deliver_params(self, batch: list[Record]) -> None:
        """Send the parameters that are new: MLflow refuses a whole batch for one that has another value already."""
        from mlflow.entities import Param

        recorded: dict[str, str] = self._client.get_run(self._run_ids[0]).data.params
        known = dict(recorded)
        for record in batch:
            value = known.setdefault(record.key, record.value)
            if value != record.value:
                logger.warning(
                    "MLflow parameter %s stays %s: it cannot be changed to %s.", record.key, value, record.value
                )
        new = [Param(key, value) for key, value in known.items() if key not in recorded]
        self._client.log_batch(self._run_ids[0], params=new)

    def _open(self) -> None:
        """Find or create the step's runs, and settle those that a dead process left open."""
        if self._is_open:
            return
        self._client = connect(self._tracker.uri)
        self.experiment_id = self._find_experiment()
        parent_id = self._find_parent()
        self._run_ids = [self._nested_run(parent_id), parent_id] if self.nested else [parent_id]
        if not self._is_over:
            self._set_state(_running_here())
        self._is_open = True
        for run in self._client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"):
            if PIPELINE_RUN_TAG in run.data.tags and run.info.run_id not in self._run_ids:
                self._settle(run)

    def _set_state(self, state: str) -> None:
        """Write the step's state into its runs."""
        for run_id in self._run_ids:
            is_nested = self.nested and run_id == self._run_ids[0]
            own = "FAILED" if is_nested and self.has_failed and state == "FINISHED" else state
            self._client.set_tag(run_id, STEP_TAG + self._step, own)
            self._settle(self._client.get_run(run_id))

    def _settle(self, run: Run) -> None:
        """Mark the steps of a run that ended without telling, and give the run the state that follows from its steps."""
        tags, run_id = run.data.tags, run.info.run_id
        states = {tag: state for tag, state in tags.items() if tag.startswith(STEP_TAG)}
        for tag, state in states.items():
            step = tags[PIPELINE_RUN_TAG], tag.removeprefix(STEP_TAG)
            if state.startswith("RUNNING") and step != (self._tracker.pipeline_run, self._step):
                died = "KILLED" if _has_died(state.removeprefix("RUNNING ")) else None
                if ended := _untold.get(step) or self._tracker.ended(*step) or died:
                    states[tag] = ended
                    self._client.set_tag(run_id, tag, ended)
        if any(state.startswith("RUNNING") for state in states.values()):
            if run.info.status != "RUNNING":
                self._client.update_run(run_id, "RUNNING")
        else:
            worst = next((status for status in ("FAILED", "KILLED") if status in states.values()), "FINISHED")
            self._client.set_terminated(run_id, worst)

    def _find_experiment(self) -> str:
        tracker = self._tracker
        if experiment := self._client.get_experiment_by_name(tracker.experiment):
            return str(experiment.experiment_id)
        database = _sqlite_path(tracker.uri)
        artifacts = (database.parent / "artifacts").as_uri() if database else None
        return str(self._client.create_experiment(tracker.experiment, artifacts))

    def _find_parent(self) -> str:
        """The pipeline run's parent run, created by the first of its steps."""
        parents = self._search(nested=False)
        if not parents:
            self._create(self._tracker.run_name)
            parents = self._search(nested=False)
        # Two steps that started at once may each have created one: the first counts.
        for run in parents[1:]:
            self._client.delete_run(run.info.run_id)
        return str(parents[0].info.run_id)

    def _nested_run(self, parent_id: str) -> str:
        """A new nested run in place of the one that an earlier attempt of the step left; of a step that is over, its own.

        Raises:
            UserError: the step is over, and another attempt has taken its place.
        """
        for run in self._search(nested=True):
            if run.data.tags.get(STAGE_TAG) == self._step:
                if self._is_over:
                    if run.data.tags[STARTED_TAG] != self._started_at:
                        raise UserError(
                            f"{self._step} was run again since and has told MLflow: there is nothing to send"
                        )
                    return str(run.info.run_id)
                self._client.delete_run(run.info.run_id)
        name = f"{self._step} of {self._tracker.run_name}"
        return self._create(name, {PARENT_TAG: parent_id, STAGE_TAG: self._step})

    def _search(self, nested: bool) -> list[Run]:
        """The pipeline run's parent runs or nested runs, oldest first."""
        runs = self._client.search_runs(
            [str(self.experiment_id)],
            f"tags.`{PIPELINE_RUN_TAG}` = '{self._tracker.pipeline_run}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
        return [run for run in runs if (PARENT_TAG in run.data.tags) == nested]

    @property
    def _started_at(self) -> str:
        return datetime.fromtimestamp(self.started / 1000, UTC).isoformat(timespec="milliseconds")

    def _create(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        tags = {
            PIPELINE_RUN_TAG: self._tracker.pipeline_run,
            STARTED_TAG: self._started_at,
            STEP_TAG + self._step: _running_here(),
            **(tags or {}),
        }
        return str(self._client.create_run(str(self.experiment_id), self.started, tags, name).info.run_id)


def _dataset_input(name: str, digest: str, n_rows: int, source: str, context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name,
        digest[:DIGEST_CHARS],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({"num_rows": n_rows, "digest": digest}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _running_here() -> str:
    """The state of a step at work in this process, as `RUNNING host:pid:start time`."""
    return f"RUNNING {socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def _has_died(process: str) -> bool:
    """Whether `host:pid:start time` was a process of this host and is no more."""
    host, pid, started = process.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(int(pid))
        # Pids are given out again; a zombie only waits to be noticed; the clock behind the start time may be adjusted.
        return abs(found.create_time() - float(started)) > 2 or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def connect(uri: str) -> MlflowClient:
    """A client that gives up after seconds and is quiet about retries and migrations."""
    # MLflow's own defaults keep a caller waiting for four minutes when a server is dead.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow.store.db", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(_is_not_about_mlflow)
    from mlflow import MlflowClient

    if database := _sqlite_path(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def _is_not_about_mlflow(entry: logging.LogRecord) -> bool:
    return "/mlflow" not in entry.getMessage()


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _local_folder() -> Path:
    return Path.cwd() / ".mlflow"


def reason(failure: BaseException) -> str:
    """What is at the bottom of a failure, e.g. `Connection refused`: MLflow and requests pile pages on top of it."""
    cause: BaseException | None = failure
    while cause:
        if isinstance(cause, OSError):
            failure = cause
        cause = cause.__cause__ or cause.__context__
    return without_password((str(failure).strip() or type(failure).__name__).splitlines()[0])[:200]
