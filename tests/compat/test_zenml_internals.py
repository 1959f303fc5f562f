"""What posttrain/compat/zenml_internals.py relies on in ZenML."""

import inspect

import pytest
from support.contracts import require
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import StoreType
from zenml.models import ModelVersionPipelineRunRequest, PipelineRunUpdate, ScheduleUpdate, StepRunUpdate
from zenml.pipelines.pipeline_definition import Pipeline
from zenml.steps import BaseStep
from zenml.zen_stores.rest_zen_store import RestZenStore
from zenml.zen_stores.sql_zen_store import SqlZenStore

from posttrain.compat.zenml_internals import (
    archive_schedule_record,
    link_run_record,
    server_version,
    update_run_record,
    update_schedule_record,
    update_step_record,
    without_caching_parameters,
    without_input_schema,
    without_parameter_schema,
)

METHODS = [
    ("update_schedule", ["self", "schedule_id", "schedule_update"], update_schedule_record),
    ("delete_schedule", ["self", "schedule_id", "soft"], archive_schedule_record),
    (
        "create_model_version_pipeline_run_link",
        ["self", "model_version_pipeline_run_link"],
        link_run_record,
    ),
    ("get_store_info", ["self"], server_version),
    ("update_run", ["self", "run_id", "run_update"], update_run_record),
    ("update_run_step", ["self", "step_run_id", "step_run_update"], update_step_record),
]


@pytest.mark.parametrize(("name", "parameters", "user"), METHODS)
@pytest.mark.parametrize("store", [SqlZenStore, RestZenStore])
def test_stores_have_the_methods_that_are_called(store, name, parameters, user):
    found = inspect.signature(getattr(store, name)).parameters if hasattr(store, name) else {}
    further = list(found.values())[len(parameters) :]
    require(
        list(found)[: len(parameters)] == parameters and all(one.default is not one.empty for one in further),
        "zenml",
        f"{store.__name__}.{name}({', '.join(parameters)})",
        user,
    )


def test_client_has_a_store_and_models_have_the_fields():
    require(isinstance(Client.zen_store, property), "zenml", "Client.zen_store is a property", update_schedule_record)
    for model, fields, user in (
        (ScheduleUpdate, {"name", "active"}, update_schedule_record),
        (PipelineRunUpdate, {"status"}, update_run_record),
        (StepRunUpdate, {"status"}, update_step_record),
        (ModelVersionPipelineRunRequest, {"model_version", "pipeline_run"}, link_run_record),
    ):
        require(fields <= set(model.model_fields), "zenml", f"{model.__name__} has the fields {sorted(fields)}", user)
    require(StoreType.SQL.value == "sql", "zenml", "the type of a local store is 'sql'", server_version)


def test_client_cannot_do_it_itself():
    """As soon as one of these fails, the function can go."""
    parameters = inspect.signature(Client.update_schedule).parameters
    require("name" not in parameters, "zenml", "Client.update_schedule cannot rename", update_schedule_record)
    require(
        not hasattr(Client, "create_model_version_pipeline_run_link"),
        "zenml",
        "Client cannot create the link of a run",
        link_run_record,
    )


def test_a_local_database_has_no_server_version():
    assert server_version(Client()) is None


def test_steps_have_classes_of_their_own_with_caching_parameters():
    @step
    def first() -> None: ...

    @step
    def second() -> None: ...

    require(
        isinstance(BaseStep.caching_parameters, property) and "caching_parameters" not in vars(type(first)),
        "zenml",
        "BaseStep.caching_parameters is a property",
        without_caching_parameters,
    )
    require(
        type(first) is not type(second), "zenml", "zenml.step makes a class for each step", without_caching_parameters
    )
    assert without_caching_parameters(first).caching_parameters == {}
    assert second.caching_parameters is not None


@step
def _with_parameter(number: int) -> int:
    return number


def test_schemas_of_parameters_can_be_left_out():
    for kind, name, user in (
        (BaseStep, "_compute_parameter_schema", without_parameter_schema),
        (Pipeline, "_compute_input_schema", without_input_schema),
    ):
        require(callable(getattr(kind, name, None)), "zenml", f"{kind.__name__}.{name}", user)
    configured = without_parameter_schema(_with_parameter.copy())
    configured.configure(parameters={"number": 1})
    require(
        configured._compute_parameter_schema() == {}, "zenml", "a step may have no schema", without_parameter_schema
    )

    class Small(Pipeline):
        pass

    @pipeline
    def one_step(number: int) -> None:
        _with_parameter(number)

    without_input_schema(Small)
    small = Small(name="small", entrypoint=one_step.entrypoint)
    require(
        small._compute_input_schema() == {"type": "object"},
        "zenml",
        "an input schema may be empty",
        without_input_schema,
    )
    require(
        "number" in str(one_step._compute_input_schema()), "zenml", "other pipelines keep theirs", without_input_schema
    )
