"""Tokens: the preference pairs and SFT rows of a run as token ids, with the cuts that were made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.template import Chat
from posttrain.config import Lengths
from posttrain.data.rows import SPLITS
from posttrain.errors import UserError

ABOUT = "tokens.json"
Cuts = dict[str, dict[str, int]]
"""By split: how many rows were cut or left out, and why."""


@dataclass(frozen=True)
class PairTokens:
    """Preference pairs as token ids, cut to the lengths of DPO. Scoring, DPO, evaluation and generation read them."""

    tables: dict[str, pa.Table]
    """By split: `posttrain.chat.tokenise.PAIR_TOKENS`. Pairs that were left out are missing."""
    cut: Cuts
    """Counts as `posttrain.chat.tokenise.cut_pairs` gives them."""
    lengths: Lengths
    chat: str
    """`Chat.digest` of the tokenizer and template."""

    def rows(self, split: str) -> Dataset:
        """Return the pairs of a split: `id, prompt_ids, chosen_ids, rejected_ids`."""
        return _dataset(self.tables[split], self.digest, split)

    @cached_property
    def digest(self) -> str:
        """sha256 of all token ids, ids, counts, lengths, tokenizer and template."""
        return _digest(self.tables, self._about())

    def save(self, folder: Path) -> None:
        """Write one Parquet file a split and `tokens.json`."""
        _save(self.tables, self._about(), folder)

    @classmethod
    def load(cls, folder: Path) -> PairTokens:
        """Return what `save` wrote."""
        about = _load_about(folder)
        return cls(_load_tables(folder), about["cut"], Lengths(**about["lengths"]), about["chat"])

    def _about(self) -> dict[str, Any]:
        return {"cut": self.cut, "lengths": self.lengths.model_dump(), "chat": self.chat}


@dataclass(frozen=True)
class SftTokens:
    """SFT rows as token ids, cut to the length of SFT. They do not depend on DPO's lengths, and so SFT does not either."""

    tables: dict[str, pa.Table]
    """`train`, `validation` and the held-out instructions `test`: `posttrain.chat.tokenise.COMPLETION_TOKENS`."""
    cut: Cuts
    """Counts as `posttrain.chat.tokenise.cut_completions` gives them."""
    max_length: int
    chat: str
    """`Chat.digest` of the tokenizer and template."""

    def rows(self, split: str) -> Dataset:
        """Return the rows of a split: `input_ids, labels`."""
        return _dataset(self.tables[split], self.digest, split)

    @cached_property
    def digest(self) -> str:
        """sha256 of all token ids, counts, length, tokenizer and template."""
        return _digest(self.tables, self._about())

    def save(self, folder: Path) -> None:
        """Write one Parquet file a split and `tokens.json`."""
        _save(self.tables, self._about(), folder)

    @classmethod
    def load(cls, folder: Path) -> SftTokens:
        """Return what `save` wrote."""
        about = _load_about(folder)
        return cls(_load_tables(folder), about["cut"], about["max_length"], about["chat"])

    def _about(self) -> dict[str, Any]:
        return {"cut": self.cut, "max_length": self.max_length, "chat": self.chat}


def check_chat(tokens: PairTokens | SftTokens, chat: Chat, model: str) -> None:
    """Check that tokens were made with the tokenizer and template of a model.

    Args:
        model: name of the model in the error message.

    Raises:
        UserError: they were made with another tokenizer or template.
    """
    if tokens.chat != chat.digest:
        raise UserError(
            f"the pairs were tokenised with another tokenizer or chat template ({tokens.chat[:16]}) than that of {model} "
            f"({chat.digest[:16]}, template {chat.template}), so the model would read other text than was meant: tokenise the "
            f"pairs again with the tokenizer of {model}"
        )


def _dataset(table: pa.Table, digest: str, split: str) -> Dataset:
    # Without a fingerprint, `datasets` copies and hashes all tokens to make one.
    return Dataset(table, fingerprint=hashlib.sha256(f"{digest} {split}".encode()).hexdigest()[:16])


def _digest(tables: dict[str, pa.Table], about: dict[str, Any]) -> str:
    """Return sha256 of tables of ids and token ids, the same on any machine and for any chunks."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for split, table in tables.items():
        digest.update(f"\n{split} {table.num_rows} rows\n".encode())
        for name in table.column_names:
            column = table[name]
            digest.update(f"{name}\n".encode())
            if pa.types.is_string(column.type):
                digest.update(json.dumps(column.to_pylist()).encode())
            else:
                for values in (pc.list_value_length(column), pc.list_flatten(column)):
                    digest.update(values.to_numpy().astype(np.dtype("<i4")).tobytes())
    return digest.hexdigest()


def _save(tables: dict[str, pa.Table], about: dict[str, Any], folder: Path) -> None:
    for split, table in tables.items():
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd")
    (folder / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")


def _load_about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return about


def _load_tables(folder: Path) -> dict[str, pa.Table]:
    return {
        split: pq.read_table(folder / f"{split}.parquet") for split in SPLITS if (folder / f"{split}.parquet").exists()
    }
