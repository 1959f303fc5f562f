"""Load a run's YAML file and check its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from posttrain.config.assign import assign
from posttrain.config.equivalents.tools import TOOLS
from posttrain.config.explain import explain, merge, nearest
from posttrain.config.run_config import RunConfig
from posttrain.errors import UserError

# The top level of a run's YAML file is ZenML's; a test compares this list with ZenML's own model.
TOP_LEVEL_KEYS = frozenset(
    "run_name enable_cache enable_artifact_metadata enable_artifact_visualization enable_step_logs enable_pipeline_logs "
    "enable_heartbeat schedule build steps settings environment secrets tags extra model parameters retry "
    "init_hook_source init_hook_kwargs cleanup_hook_source failure_hook_source success_hook_source start_hook_source "
    "end_hook_source pause_hook_source resume_hook_source substitutions cache_policy execution_mode".split()
)


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML and rejects duplicate keys: YAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: the file cannot be read, or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error


def load_config(path: str | Path, assignments: Sequence[str] = ()) -> RunConfig:
    """Return the checked config of a YAML file.

    Args:
        path: a file whose `parameters.config` holds the run's settings; the other keys are ZenML's.
        assignments: settings in place of the file's, such as `dpo.beta=0.2`.

    Raises:
        UserError: one line for each mistake, with file, key, value and remedy.
    """
    return load_document(path, assignments)[1]


def load_document(path: str | Path, assignments: Sequence[str] = ()) -> tuple[dict[str, Any], RunConfig]:
    """Return the whole content of a YAML file and its checked config; arguments and errors as for `load_config`."""
    path = Path(path)
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: contains no settings: put them under `parameters: config:`")
    for key in document:
        if key not in TOP_LEVEL_KEYS:
            hint = (
                "run settings go under `parameters: config:`"
                if key in RunConfig.model_fields
                else _other_tool(document)
            )
            raise UserError(f"{path}: {key}: unknown key ({hint or nearest(str(key), TOP_LEVEL_KEYS)})")
    name = document.get("run_name")
    if isinstance(name, str) and "{time}" not in name:
        raise UserError(
            f"{path}: run_name: {name!r} would be the name of every run, and ZenML takes a name only once: add date and time, as "
            f"in {name + '-{date}-{time}'!r}"
        )
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"config"}:
        wrong = ", ".join(map(str, set(parameters) - {"config"})) if isinstance(parameters, dict) else repr(parameters)
        raise UserError(f"{path}: parameters.{wrong}: unknown key (the only parameter is `config`)")
    if not assignments:
        return document, check_config(parameters.get("config") or {}, path)
    values = assign(parameters.get("config") or {}, assignments)
    return document | {"parameters": {"config": values}}, check_config(values, f"{path} with --set")


def _other_tool(document: dict[Any, Any]) -> str | None:
    """Return what to do with a file of another tool; None if fewer than half of its keys belong to one."""
    for tool in TOOLS.values():
        if 2 * sum(tool.find(str(key)) is not None for key in document) > len(document) > 1:
            return "if this is a DPO config of TRL, LLaMA-Factory or axolotl, `posttrain import-config` turns it into one of ours"
    return None


def check_config(values: Any, path: str | Path = "config") -> RunConfig:
    """Return the checked config of plain values, as read from YAML.

    Raises:
        UserError: one line for each mistake, each beginning with `path`.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines: dict[str, list[str]] = {}
        for item in error.errors():
            key, message = explain(item, RunConfig)
            lines.setdefault(key, []).append(message)
        # A value that fits none of several types gets one error for each type: report them as one.
        raise UserError("\n".join(f"{path}: {key}: {merge(messages)}" for key, messages in lines.items())) from error
