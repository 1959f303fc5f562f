"""Finds rows in stored preferences and instructions."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from posttrain.data.exclusion import Exclusion

PARTS = {"prompt", "chosen", "rejected", "completion"}
"""Columns with messages."""


def find_rows(rows: Dataset, wanted: str) -> list[int]:
    """Return the indices of the rows with an id, or whose messages contain a text, without regard to case."""
    table = rows.with_format("arrow")[:].combine_chunks()
    found = pc.equal(table["id"], wanted).to_numpy().copy()
    for name in PARTS & set(table.column_names):
        for turns in table[name].chunks:  # a single one
            has = pc.match_substring(pc.struct_field(pc.list_flatten(turns), "content"), wanted, ignore_case=True)
            found[pc.list_parent_indices(turns).to_numpy()[has.to_numpy(zero_copy_only=False)]] = True
    return [int(i) for i in np.flatnonzero(found)]


def find_excluded(rows: Dataset, exclusion: Exclusion) -> list[int]:
    """Return the indices of the rows that an exclusion covers. Ids of the source itself are not stored."""
    return [i for i, row in enumerate(rows.select_columns(["id", "prompt"])) if exclusion.covers(row)]
