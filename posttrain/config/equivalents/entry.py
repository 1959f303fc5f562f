"""The entries of a table of equivalents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Equivalent:
    """A setting of another tool and ours for it."""

    name: str
    """Name of the setting in the tool."""
    ours: str
    """Our setting, dotted: `dpo.batch_size`."""
    values: Mapping[Any, Any] = field(default_factory=dict)
    """Their value to ours. Empty: values are the same. Otherwise, values that are not listed cannot be carried over."""
    rule: str = ""
    """Name of the function in `conversions` or `dataset_conversions` that converts the value; empty: `values` decides."""
    difference: str = ""
    """The difference here in one sentence; `{tool}` is replaced by the tool's name."""
    value_differences: Mapping[Any, str] = field(default_factory=dict)
    """The same for single values."""
    comment: str | None = None
    """Comment on the setting in an imported config; None: `difference`."""
    default: Any = None
    """The tool's default, if it differs from ours. An import writes it if the file does not contain the setting."""
    null: str = ""
    """Meaning of null in the tool, if it is not the tool's default."""


@dataclass(frozen=True)
class WithoutEquivalent:
    """A setting of another tool that has no equivalent here."""

    reason: str
    needed: bool
    """False if leaving it out loses nothing."""
    same: tuple[Any, ...] = ()
    """Values that have the effect that training has here anyway."""


@dataclass(frozen=True)
class Tool:
    """The settings of another tool."""

    key: str
    """`trl`, `llama-factory` or `axolotl`."""
    name: str
    model_key: str
    """Its setting for the base model."""
    data_keys: tuple[str, ...]
    """Its settings for the training data."""
    equivalents: tuple[Equivalent, ...]
    not_needed: Mapping[str, str]
    """Names, separated by spaces, by reason. A name ending in `*` matches all names with that start."""
    not_supported: Mapping[str, str]
    """The same, for settings whose effect is lost."""
    same: Mapping[str, tuple[Any, ...]]
    """Values, by setting without an equivalent, whose effect training has here anyway."""

    def find(self, name: str) -> Equivalent | WithoutEquivalent | None:
        """Return the entry of a setting, or None if the tool has no known setting of that name."""
        for entry in self.equivalents:
            if entry.name == name:
                return entry
        for needed, groups in ((False, self.not_needed), (True, self.not_supported)):
            for reason, names in groups.items():
                if any(_matches(name, pattern) for pattern in names.split()):
                    return WithoutEquivalent(reason, needed, self.same.get(name, ()))
        return None

    def without_equivalent(self) -> Iterator[tuple[str, str, bool]]:
        """Yield names, reason and whether something is lost, one reason at a time."""
        for needed, groups in ((False, self.not_needed), (True, self.not_supported)):
            for reason, names in groups.items():
                yield names, reason, needed


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def join_groups(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """Two groups of names by reason as one; names that have the same reason are joined."""
    return {reason: " ".join(filter(None, (first.get(reason), second.get(reason)))) for reason in {**first, **second}}
