"""Layout of Self-Instruct: an instruction and several instances with input and output.

Source: Wang et al. 2022, https://github.com/yizhongw/self-instruct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Example, Values, answer, instruct

COLUMNS = REQUIRED_COLUMNS["self_instruct"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> list[Example]:
    """Return an example for each instance in a row."""
    instances = row.get("instances")
    if not isinstance(instances, list) or not all(isinstance(instance, Mapping) for instance in instances):
        raise Unusable("not_text")
    if not instances:
        raise Unusable("empty")
    return [
        Example(instruct(row.get("instruction"), instance.get("input")), answer(instance.get("output")))
        for instance in instances
    ]
