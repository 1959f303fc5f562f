"""Private parts of ZenML: records that its client cannot change, and part of a step's cache key.

The client is passed in, so that the library does not import ZenML.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID


def update_schedule_record(client: Any, schedule_id: UUID, update: Any) -> None:
    """Change ZenML's record of a schedule, and leave the schedule at the orchestrator unchanged.

    Reason: `Client.update_schedule` changes the schedule at the orchestrator too, cannot rename one, and refuses
    orchestrators without support for updates, whose schedules are changed there directly.
    Read against: ZenML 0.98 (`Client.zen_store.update_schedule`).
    Remove when: `Client.update_schedule` can rename a schedule, and can be told to change the record only.

    Args:
        update: a `zenml.models.ScheduleUpdate`.
    """
    client.zen_store.update_schedule(schedule_id, update)


def archive_schedule_record(client: Any, schedule_id: UUID) -> None:
    """Delete the record of a schedule and keep its runs.

    Reason: `Client.delete_schedule` asks the orchestrator to delete the schedule, which is already done.
    Read against: ZenML 0.98 (`Client.zen_store.delete_schedule`).
    Remove when: `Client.delete_schedule` can be told to delete the record only.
    """
    client.zen_store.delete_schedule(schedule_id, soft=True)


def link_run_record(client: Any, link: Any) -> None:
    """Link a model version to a pipeline run.

    Reason: `Client` has functions to list and delete such links, and none to create one.
    Read against: ZenML 0.98 (`Client.zen_store.create_model_version_pipeline_run_link`).
    Remove when: `Client` can create the link.

    Args:
        link: a `zenml.models.ModelVersionPipelineRunRequest`.
    """
    client.zen_store.create_model_version_pipeline_run_link(link)


def server_version(client: Any) -> tuple[str, str] | None:
    """Return the address of the ZenML server and its version; None where the records are in a local database.

    Reason: `Client` does not tell which kind of store it uses.
    Read against: ZenML 0.98 (`Client.zen_store.type`, `url` and `get_store_info`).
    Remove when: `Client` has a public function for it.
    """
    store = client.zen_store
    return None if store.type.value == "sql" else (str(store.url), str(store.get_store_info().version))


def without_caching_parameters(step: Any) -> Any:
    """Return the step with an empty `caching_parameters`, so that the cache key holds no text of materializers.

    Reason: ZenML hashes the source text of a step's materializers, comments included. The digest of a step's cache policy
    covers the code of the materializers.
    Read against: ZenML 0.98 (`BaseStep.caching_parameters`; `zenml.step` makes a class for each step).
    Remove when: a cache policy can leave the materializers out.

    Args:
        step: made by `zenml.step`.
    """
    type(step).caching_parameters = property(lambda _: {})
    return step


def without_parameter_schema(step: Any) -> Any:
    """Return the step without the JSON schema of its parameters, which ZenML would store twice in every run (110 kB in all).

    Reason: the schema is for forms that set parameters of single steps. Here all settings are in one parameter of the pipeline.
    Read against: ZenML 0.98 (`BaseStep._compute_parameter_schema`, which gives {} for a step without parameters).
    Remove when: ZenML stores the schema once, or it can be turned off.

    Args:
        step: made by `zenml.step`.
    """
    type(step)._compute_parameter_schema = lambda _: {}
    return step


def without_input_schema(pipeline: type[Any]) -> None:
    """Let a class of pipelines store the names of its parameters without the schema of all settings (52 kB in every run).

    Reason: the schema is for pipelines that are deployed as an HTTP endpoint.
    Read against: ZenML 0.98 (`Pipeline._compute_input_schema`).
    Remove when: ZenML stores the schema once, or it can be turned off.
    """
    pipeline._compute_input_schema = lambda _: {"type": "object"}  # type: ignore[attr-defined]


def update_run_record(client: Any, run_id: UUID, update: Any) -> None:
    """Change the record of a pipeline run, such as its status.

    Reason: `Client` can neither stop a run of the local orchestrator nor close one whose process was killed.
    Read against: ZenML 0.98 (`Client.zen_store.update_run`; a run that is stopping ends as stopped once its steps have ended).
    Remove when: `Client` can stop any run.

    Args:
        update: a `zenml.models.PipelineRunUpdate`.
    """
    client.zen_store.update_run(run_id, update)


def update_step_record(client: Any, step_id: UUID, update: Any) -> None:
    """Change the record of a step, such as its status.

    Reason: `Client.update_step_run` can only change when the step's result leaves the cache.
    Read against: ZenML 0.98 (`Client.zen_store.update_run_step`; a step that is stopping and fails ends as stopped).
    Remove when: `Client` can stop a step.

    Args:
        update: a `zenml.models.StepRunUpdate`.
    """
    client.zen_store.update_run_step(step_id, update)
