"""The runs in MLflow that belong to a step: found or made, told how the step goes, and settled where a process has died."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import psutil

from posttrain.errors import UserError
from posttrain.tracking.connection import _sqlite_path, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

    from posttrain.tracking.tracked_stage import Tracker

logger = logging.getLogger(__name__)

DIGEST_CHARS = 16  # of a dataset, to be read; MLflow takes 36, and the whole digest stands in its profile

PIPELINE_RUN_TAG = "posttrain.pipeline_run"
STAGE_TAG = "posttrain.stage"
STARTED_TAG = "posttrain.started"
STEP_TAG = "posttrain.step."
PARENT_TAG = "mlflow.parentRunId"

# How many records of a kind go into one request, in the order in which the kinds are sent. Artifacts come last: they
# may lie in another store, whose failure must keep back neither the curves nor how the step ended.
BATCH_SIZES = {"param": 100, "tag": 100, "dataset": 100, "metric": 1000, "status": 1, "artifact": 1}

untold: dict[tuple[str, str], str] = {}
"""Steps of this process that ended while the server was away, and how: told when the next stage opens."""


@dataclass(frozen=True)
class Record:
    """One thing to be recorded. `key` is a name or, for an artifact, a path; `timestamp` is in milliseconds."""

    kind: str
    key: str
    value: Any
    step: int = 0
    timestamp: int = field(default_factory=lambda: int(time.time() * 1000))


class StepRun:
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
                if ended := untold.get(step) or self._tracker.ended(*step) or died:
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
