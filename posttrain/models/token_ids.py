"""Token ids of data against the rows of a model's embedding."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from posttrain.errors import UserError

ID_COLUMNS = frozenset({"input_ids", "prompt_ids", "chosen_ids", "rejected_ids"})


def check_token_ids(rows: Dataset, model: Any) -> None:
    """Check that the model's embedding has a row for every token id.

    Raises:
        UserError: with the largest id. A GPU would stop with an error that names neither.
    """
    n_rows = model.get_input_embeddings().num_embeddings
    columns = [rows.data.table[name] for name in rows.column_names if name in ID_COLUMNS]
    largest = max((pc.max(pc.list_flatten(column)).as_py() or 0 for column in columns), default=0)
    if largest >= n_rows:
        raise UserError(
            f"the data has token id {largest}, but the model's embedding has {n_rows} rows (ids 0 to {n_rows - 1}): the tokenizer "
            "has tokens that the model was never resized for; enlarge the embedding (`model.resize_token_embeddings`) and save "
            "the model, or remove that token from the data"
        )
