"""A model in MLflow's registry, whose versions and aliases mirror those in ZenML's registry."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.tracking import PARENT_TAG, PIPELINE_RUN_TAG, UI_PORT, Tracker, connect
from posttrain.tracking.mlmodel import WEIGHTS

if TYPE_CHECKING:
    from mlflow.entities import Run

MODEL_VERSION_TAG = "zenml.model_version"


@dataclass(frozen=True)
class Registration:
    """A model version to register in MLflow."""

    version: str
    """Name of the version in ZenML's registry, unique within the model."""
    source: str
    """URI of the checkpoint's files, which are not copied. `MLmodel` lies beside their folder."""
    tags: dict[str, str]
    description: str
    experiment: str
    pipeline_run: str
    """Id of the pipeline run that created the version. Together with the experiment it identifies the MLflow run."""


class ModelRegistry:
    """A model in MLflow's registry. All operations are idempotent.

    Raises:
        MlflowException: by every method, if MLflow does not answer.
    """

    def __init__(self, uri: str, name: str) -> None:
        self._tracker = Tracker(uri, "", "", "")
        self._uri, self._name = uri, name
        self._client = connect(uri)

    def register(self, registration: Registration) -> str:
        """Register a version, if it is new, and return its number in MLflow."""
        from mlflow.exceptions import MlflowException

        known = self.numbers()
        if registration.version not in known:
            try:
                self._client.create_registered_model(self._name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            run = self._find_run(registration)
            tags = {**registration.tags, MODEL_VERSION_TAG: registration.version}
            model_id = run and self._log_model(registration.version, run, tags)
            created = self._client.create_model_version(
                self._name,
                _readable_elsewhere(registration.source.removesuffix(f"/{WEIGHTS}"), self._uri),
                run_id=run and run.info.run_id,
                tags=tags,
                description=registration.description,
                await_creation_for=0,
            )
            if model_id:  # by this tag MLflow's pages link the model to the version
                link = json.dumps([{"name": self._name, "version": created.version}])
                self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
            known = self.numbers()
        return known[registration.version]

    def numbers(self) -> dict[str, str]:
        """Return the number in MLflow by the name in ZenML's registry; the lowest if there are several."""
        versions = self._client.search_model_versions(f"name = '{self._name}'", max_results=10_000)
        ordered = sorted(versions, key=lambda version: -int(version.version))
        return {v.tags[MODEL_VERSION_TAG]: str(v.version) for v in ordered if MODEL_VERSION_TAG in v.tags}

    def alias(self, alias: str) -> str | None:
        """Return the number of the version with an alias, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(self._name, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def set_alias(self, alias: str, number: str | None) -> None:
        """Set an alias to a version. None removes the alias."""
        if self.alias(alias) == number:
            return
        if number is None:
            self._client.delete_registered_model_alias(self._name, alias)
        else:
            self._client.set_registered_model_alias(self._name, alias, number)

    def link(self, number: str) -> str:
        """Return the URL of a version: at the server, or at the one that `TrackedStage.serve_command` starts."""
        uri = self._tracker.shown_uri
        return f"{uri.rstrip('/') if uri.startswith('http') else f'http://127.0.0.1:{UI_PORT}'}/#/models/{self._name}/versions/{number}"

    def _log_model(self, version: str, run: Run, tags: dict[str, str]) -> str:
        """Return the id of the version's LoggedModel, which has the settings and final metrics of its run."""
        from mlflow.entities import LoggedModelOutput, Metric

        experiment, run_id = run.info.experiment_id, run.info.run_id
        found = self._client.search_logged_models([experiment], f"name = '{version}'")
        known = [model for model in found if model.tags.get("zenml.model") == tags.get("zenml.model")]
        if known:  # an earlier attempt made it
            return str(known[0].model_id)
        params = {key: value for key, value in run.data.params.items() if key.startswith(("model.", "sft.", "dpo."))}
        model = self._client.create_logged_model(experiment, version, run_id, tags, params, model_type="transformers")
        last = [self._client.get_metric_history(run_id, key)[-1] for key in run.data.metrics]
        # With the same time and step, so that the run itself gets no second point.
        of_model = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id, run_id=run_id) for m in last]
        self._client.log_batch(run_id, metrics=of_model)
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _find_run(self, registration: Registration) -> Run | None:
        """Return the pipeline run's MLflow run, or None if this server does not have it."""
        experiment = self._client.get_experiment_by_name(registration.experiment)
        if experiment is None:
            return None
        runs = self._client.search_runs(
            [experiment.experiment_id], f"tags.`{PIPELINE_RUN_TAG}` = '{registration.pipeline_run}'"
        )
        return next((run for run in runs if PARENT_TAG not in run.data.tags), None)


def _readable_elsewhere(source: str, uri: str) -> str:
    """Return a source that the server accepts. Servers reject local paths, because these would be on their own disk."""
    if uri.startswith("http") and source.startswith("/"):
        return f"local://{socket.gethostname()}{source}"
    return source


def registry_error() -> type[Exception]:
    """Return the exception class that `ModelRegistry` raises, for modules that may not import MLflow."""
    import mlflow.exceptions

    error: type[Exception] = mlflow.exceptions.MlflowException
    return error
