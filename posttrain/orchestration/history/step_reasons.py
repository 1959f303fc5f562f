"""Why a step was computed although an earlier run has a result of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zenml.models import ArtifactVersionResponse, StepRunResponse
from zenml.utils.time_utils import utc_now

from posttrain.config.flatten import flatten
from posttrain.orchestration.running_step.step_usage import KEY_PARTS
from posttrain.reporting.past_runs.explanation import N_NAMES, differences, listed

INPUTS = {
    "preferences": "the rows",
    "base": "the base model",
    "model": "the model's settings",
    "champion": "the champion",
    "instructions": "the instructions",
}
"""Names of inputs in a sentence, where their own are not clear."""
SETTINGS = {
    "lengths": "dpo",
    "sft_max_length": "sft.max_length",
    "loss_on": "sft.loss_on",
    "checks": "data.checks",
    "max_drop_share": "data.max_drop_share",
    "tokens_per_batch": "evaluation.tokens_per_batch",
}
"""Names of settings, by the parameter of a step that has them under another one."""


def reasons_to_run(step: StepRunResponse, earlier: StepRunResponse) -> list[str]:
    """Return what differs between a step that ran and an earlier run of it: inputs, settings, packages, code."""
    found = [*_inputs(step, earlier), *_settings(step, earlier), *_code(step, earlier)]
    if found:
        return found
    if step.config.enable_cache is False:
        return ["the cache was switched off (enable_cache: false)"]
    if earlier.cache_expires_at and earlier.cache_expires_at < utc_now():
        return ["its earlier result was damaged, missing or too old"]
    if _stores(step) != _stores(earlier):
        return ["its earlier result is in another artifact store"]
    if KEY_PARTS not in step.run_metadata or KEY_PARTS not in earlier.run_metadata:
        return ["other code or packages, which were not recorded in detail"]
    return ["nothing that is recorded: its run file may have another cache policy, or the same result was deleted"]


def code_changes(step: StepRunResponse, earlier: StepRunResponse) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Return the modules and the packages that differ between the cache keys of two runs of a step."""
    parts, before = _parts(step), _parts(earlier)
    if not parts or not before:
        return [], {}
    modules = [
        name + (" (new)" if old == "-" else " (removed)" if new == "-" else "")
        for name, (old, new) in differences(before["code"], parts["code"]).items()
    ]
    return modules, differences(before["packages"], parts["packages"])


def _inputs(step: StepRunResponse, earlier: StepRunResponse) -> Iterator[str]:
    names = [*step.inputs, *(name for name in earlier.inputs if name not in step.inputs)]
    changed = [name for name in names if _content(step.inputs.get(name)) != _content(earlier.inputs.get(name))]
    if changed:
        shown = [INPUTS.get(name, name) for name in changed]
        yield f"{listed(shown, N_NAMES)} changed"


def _content(versions: list[Any] | None) -> list[str]:
    return [str(version.content_hash or version.id) for version in versions or []]


def _settings(step: StepRunResponse, earlier: StepRunResponse) -> Iterator[str]:
    changed = differences(_parameters(earlier), _parameters(step))
    shown = [f"{name} {old} -> {new}" for name, (old, new) in changed.items()]
    if shown:
        yield listed(shown, N_NAMES)


def _parameters(step: StepRunResponse) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in step.config.parameters.items():
        found |= flatten({SETTINGS.get(name, name): value})
    return found


def _code(step: StepRunResponse, earlier: StepRunResponse) -> Iterator[str]:
    modules, packages = code_changes(step, earlier)
    if packages:
        yield listed([f"{name} {old} -> {new}" for name, (old, new) in packages.items()], N_NAMES)
    if modules:
        yield f"code of {listed(modules, 3)}"


def _parts(step: StepRunResponse) -> Any:
    return step.run_metadata.get(KEY_PARTS)


def _stores(step: StepRunResponse) -> set[Any]:
    artifacts: list[ArtifactVersionResponse] = [version for made in step.outputs.values() for version in made]
    return {artifact.artifact_store_id for artifact in artifacts}
