"""Inputs and results of conversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.config.equivalents.entry import Tool

Outcome = Literal["carried over", "not needed", "not carried over"]


class NotCarriedOver(Exception):
    """The effect of a setting is lost. The message says why and what to do."""


class NotNeeded(Exception):
    """A setting can be left out without any loss. The message says why."""


@dataclass(frozen=True)
class Fate:
    """The outcome for one setting of another tool's file."""

    key: str
    value: Any
    outcome: Outcome
    settings: tuple[str, ...] = ()
    """Our settings that carry its effect."""
    reason: str = ""
    """With `carried over`: what is different here. Otherwise: why it was not carried over."""


@dataclass
class Reading:
    """A file of another tool while it is read."""

    tool: Tool
    settings: Mapping[str, Any]
    """The file's settings."""
    dataset_info: Mapping[str, Any] = field(default_factory=dict)
    """LLaMA-Factory's dataset_info.json, if there is one."""
    inner: list[Fate] = field(default_factory=list)
    """Fates of settings inside of others, such as `datasets[0].type`."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a setting, or the default if it is missing or null."""
        value = self.settings.get(name)
        return default if value is None else value
