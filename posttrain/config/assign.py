"""Settings given on the command line: `--set dpo.beta=0.2`."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import yaml

from posttrain.errors import UserError


def assign(values: Any, assignments: Iterable[str]) -> Any:
    """Return a copy of a config's values in which each assignment has replaced or added one value.

    Args:
        values: the config as read from YAML.
        assignments: such as `dpo.beta=0.2`. The value is YAML. A number in the key is a position in a list, from 0:
            `data.sources.0.limit=100`.

    Raises:
        UserError: an assignment has no value, or its key leads to nothing that can be set.
    """
    values = copy.deepcopy(values)
    if not isinstance(values, dict):
        return values  # no config at all, which its check reports
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {assignment}: not of the form KEY=VALUE, such as dpo.beta=0.2")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: {text!r} is not valid YAML: quote it for the shell") from error
        _assign_one(values, key, value)
    return values


def _assign_one(values: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place = values
    for depth, part in enumerate(parents, start=1):
        position = _position(place, part, key)
        if isinstance(place, dict) and place.get(position) is None:
            place[position] = {}
        place = place[position]
        if not isinstance(place, dict | list):
            parent = ".".join(parents[:depth])
            raise UserError(
                f"--set {key}: {parent} is {place!r} and has no settings of its own: set {parent} as a whole"
            )
    place[_position(place, last, key)] = value


def _position(place: dict[Any, Any] | list[Any], part: str, key: str) -> Any:
    """Return the key of a mapping or the index of a list that a part of a key stands for."""
    if isinstance(place, list):
        if not part.isdecimal() or int(part) >= len(place):
            raise UserError(f"--set {key}: {part!r} is not an index of a list of {len(place)}: indices start at 0")
        return int(part)
    if part.isdecimal():
        raise UserError(
            f"--set {key}: the file has no list here: set the list as a whole, such as data.sources=[my.jsonl]"
        )
    return part
