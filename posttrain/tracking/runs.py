"""The MLflow runs of a step: finds or creates them, records the state of the step, and closes runs of dead processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from posttrain.errors import UserError
from posttrain.storage.addresses import shown_address
from posttrain.storage.processes import has_died, this_process
from posttrain.tracking.connection import connect, sqlite_path
from posttrain.tracking.dataset_origin import dataset_input

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


logger = logging.getLogger(__name__)

PIPELINE_RUN_TAG = "posttrain.pipeline_run"
STAGE_TAG = "posttrain.stage"
STARTED_TAG = "posttrain.started"
STEP_TAG = "posttrain.step."
PARENT_TAG = "mlflow.parentRunId"

# Maximum number of records per request, in the order in which the kinds are sent. Artifacts come last, because they may go to
# another store, and its failure must not delay the metrics and the state of the step.
BATCH_SIZES = {"param": 100, "tag": 100, "dataset": 100, "metric": 1000, "status": 1, "artifact": 1}

untold: dict[tuple[str, str], str] = {}
"""State of the steps of this process that ended during an outage. It is sent when the next stage opens."""


@dataclass(frozen=True)
class Record:
    """A record to send. `key` is a name or, for an artifact, a path. `timestamp` is in milliseconds."""

    kind: str
    key: str
    value: Any
    step: int = 0
    timestamp: int = field(default_factory=lambda: int(time.time() * 1000))


def _unknown(pipeline_run: str, step: str) -> str | None:
    return None


@dataclass(frozen=True)
class RunIdentity:
    """Identifies the MLflow runs of one pipeline run.

    Attributes:
        uri: URI of the tracking server or database.
        experiment: name of the MLflow experiment, which is created if it does not exist.
        pipeline_run: unique id of the pipeline run; the same for retries.
        run_name: displayed name of the parent run.
        ended: function of a pipeline run and a step that returns FINISHED, FAILED or KILLED, or None if the step is running or
            its state is not known.
    """

    uri: str = field(repr=False)  # may contain a password
    experiment: str
    pipeline_run: str
    run_name: str
    ended: Callable[[str, str], str | None] = field(default=_unknown, repr=False)

    @property
    def shown_uri(self) -> str:
        """The URI without user, password and query."""
        return shown_address(self.uri)


class StepRun:
    """The MLflow runs of a step. Methods raise any exception of MLflow or of its artifact store."""

    def __init__(self, tracker: RunIdentity, step: str, nested: bool, started: int | None = None) -> None:
        """Create an object without contacting MLflow.

        Args:
            tracker: the pipeline run.
            step: name of the step.
            nested: whether the step has a nested run.
            started: start time in milliseconds of a finished step whose runs exist; None creates new runs that start now.
        """
        self._tracker = tracker
        self._step = step
        self.nested = nested
        self._is_over = started is not None
        self.started = int(time.time() * 1000) if started is None else started
        self._client: MlflowClient
        self._is_open = False
        self._run_ids: list[str] = []  # the run of the records and, if it is nested, its parent
        self.experiment_id: str | None = None
        self.has_failed = False  # the nested run, though its step goes on

    def deliver(self, records: list[Record]) -> None:
        """Send records and remove them from the list. After an error the list has the records that were not sent."""
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
            client.log_inputs(run_id, [dataset_input(r.key, **r.value) for r in batch])
        elif kind == "metric":
            client.log_batch(run_id, metrics=[Metric(r.key, r.value, r.timestamp, r.step) for r in batch])
        elif kind == "status":
            self._set_state(batch[0].value)
        else:
            client.log_text(run_id, batch[0].value, batch[0].key)

    def _deliver_params(self, batch: list[Record]) -> None:
        """Send new parameters only, because MLflow rejects a whole batch if one parameter exists with another value."""
        from mlflow.entities import Param

        recorded: dict[str, str] = self._client.get_run(self._run_ids[0]).data.params
        known = dict(recorded)
        for record in batch:
            value = known.setdefault(record.key, record.value)
            if value != record.value:
                logger.warning(
                    "MLflow parameter %s keeps its value %s, because MLflow does not allow changing it to %s.",
                    record.key,
                    value,
                    record.value,
                )
        new = [Param(key, value) for key, value in known.items() if key not in recorded]
        self._client.log_batch(self._run_ids[0], params=new)

    def _open(self) -> None:
        """Find or create the step's runs, and close those that a dead process left open."""
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
        """Update the state of a run's steps that ended without a record, and derive the status of the run."""
        tags, run_id = run.data.tags, run.info.run_id
        states = {tag: state for tag, state in tags.items() if tag.startswith(STEP_TAG)}
        for tag, state in states.items():
            step = tags[PIPELINE_RUN_TAG], tag.removeprefix(STEP_TAG)
            if state.startswith("RUNNING") and step != (self._tracker.pipeline_run, self._step):
                died = "KILLED" if has_died(state.removeprefix("RUNNING ")) else None
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
            if experiment.lifecycle_stage == "deleted":  # which takes no runs
                self._client.restore_experiment(experiment.experiment_id)
                print(
                    f"MLflow: the deleted experiment {tracker.experiment} is restored (tracking.experiment names another one)"
                )
            return str(experiment.experiment_id)
        database = sqlite_path(tracker.uri)
        artifacts = (database.parent / "artifacts").as_uri() if database else None
        return str(self._client.create_experiment(tracker.experiment, artifacts))

    def _find_parent(self) -> str:
        """Return the id of the pipeline run's parent run, which its first step creates."""
        parents = self._search(nested=False)
        if not parents:
            self._create(self._tracker.run_name)
            parents = self._search(nested=False)
        # Two steps that start at the same time can each create one. Keep the first.
        for run in parents[1:]:
            self._client.delete_run(run.info.run_id)
        return str(parents[0].info.run_id)

    def _nested_run(self, parent_id: str) -> str:
        """Return the id of a new nested run that replaces that of an earlier attempt, or of the existing run of a finished step.

        Raises:
            UserError: the step is finished, and a later attempt has replaced its run.
        """
        for run in self._search(nested=True):
            if run.data.tags.get(STAGE_TAG) == self._step:
                if self._is_over:
                    if run.data.tags[STARTED_TAG] != self._started_at:
                        raise UserError(
                            f"{self._step} was run again, and MLflow has the records of the later run: nothing needs to be sent"
                        )
                    return str(run.info.run_id)
                self._client.delete_run(run.info.run_id)
        name = f"{self._step} of {self._tracker.run_name}"
        return self._create(name, {PARENT_TAG: parent_id, STAGE_TAG: self._step})

    def _search(self, nested: bool) -> list[Run]:
        """Return the pipeline run's parent runs or nested runs, oldest first."""
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


def delete_runs(uri: str, pipeline_runs: Collection[str]) -> int:
    """Mark the MLflow runs of some pipeline runs as deleted, and return their number."""
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    n_deleted = 0
    for pipeline_run in pipeline_runs:
        for run in client.search_runs(experiments, f"tags.`{PIPELINE_RUN_TAG}` = '{pipeline_run}'"):
            client.delete_run(run.info.run_id)
            n_deleted += 1
    return n_deleted


def _running_here() -> str:
    """Return the state of a step that runs in this process: `RUNNING host:pid:start time`."""
    return f"RUNNING {this_process()}"
