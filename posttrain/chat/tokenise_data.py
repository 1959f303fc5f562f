"""Tokenise the data of a run once, for every stage that reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from posttrain.chat.findings import Findings
from posttrain.chat.rendered_rows import earlier_answers
from posttrain.chat.template import Chat
from posttrain.chat.token_report import TokenCounter, TokenReport, batches
from posttrain.chat.tokenise import (
    COMPLETION_CUTS,
    COMPLETION_TOKENS,
    PAIR_TOKENS,
    EncodedRow,
    completions,
    cut_completions,
    encode_rows,
    pair_table,
)
from posttrain.chat.tokens import PairTokens, SftTokens
from posttrain.config import Lengths
from posttrain.data.rows import SPLITS, Turn
from posttrain.data.splits import choose_split, prompt_key
from posttrain.data.stored import Instructions, Preferences
from posttrain.progress import progress_bar

HELD_OUT_SHARE = 0.02
"""Share of a separate instruction set that SFT does not train on. The evaluation measures on it what DPO forgets."""


@dataclass(frozen=True)
class TokeniseSettings:
    """Maximum lengths, and what happens to rows that exceed them."""

    lengths: Lengths
    """Of pairs."""
    sft_max_length: int | None = None
    """Of SFT rows; None: no SFT is trained."""
    must_fit: bool = False
    """Raise an error if a pair is cut or left out (`data.checks`: `truncated: fail`)."""
    loss_on_all: bool = False
    """SFT trains on the earlier answers in the prompts too (`sft.loss_on: all`)."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """Policies of the checks of rendered rows, as in `data.checks`."""
    max_drop_share: float = 1.0
    """Raise an error if these checks drop a larger share of the rows."""


@dataclass(frozen=True)
class DataTokens:
    """The tokens of a run."""

    pairs: PairTokens
    sft: SftTokens | None
    report: TokenReport


def tokenise_data(
    chat: Chat, preferences: Preferences, instructions: Instructions | None, settings: TokeniseSettings
) -> DataTokens:
    """Tokenise the pairs of every split, and cut them for DPO and for SFT.

    Each prompt and response is tokenised once; DPO and SFT cut the same tokens in different ways. SFT trains on the
    instructions, but for the `HELD_OUT_SHARE` that are held out, or, if there are none, on the chosen responses of the
    training split. It validates on the chosen responses of the validation split.

    Raises:
        UserError: a pair is cut or left out, and `settings.must_fit` is set.
    """
    counter, findings = TokenCounter(chat, settings.lengths), Findings(settings.checks)
    sft = _SftRows(chat, settings) if settings.sft_max_length is not None else None
    tables: dict[str, pa.Table] = {}
    cut: dict[str, dict[str, int]] = {}
    with progress_bar(preferences.n_pairs, "Tokenising", " pairs") as bar:
        for split, rows in preferences.splits().items():
            pieces, before = [PAIR_TOKENS.empty_table()], Counter(counter.cut) + findings.dropped
            for batch in batches(rows):
                whole = encode_rows(chat, batch, ("chosen", "rejected"), findings)
                pieces.append(pair_table(counter.add([row.pair for row in whole])))
                if sft and (split == "validation" or (split == "train" and instructions is None)):
                    sft.add(split, whole)
                bar.update(len(batch))
            tables[split] = pa.concat_tables(pieces)
            cut[split] = {name: n - before[name] for name, n in (counter.cut | findings.counts()).items()}
    if settings.must_fit:
        counter.check_all_fit()
    if sft and instructions is not None:
        with progress_bar(len(instructions.rows), "Tokenising", " instructions") as bar:
            for batch in batches(instructions.rows):
                splits = [_sft_split(prompt) for prompt in batch["prompt"]]
                for split in SPLITS:
                    rows = batch.select([i for i, found in enumerate(splits) if found == split])
                    sft.add(split, encode_rows(chat, rows, ("completion",), findings) if len(rows) else [])
                bar.update(len(batch))
    findings.check_policies(chat.template, settings.max_drop_share)
    return DataTokens(
        PairTokens(tables, cut, settings.lengths, chat.digest),
        sft.tokens() if sft else None,
        counter.report(preferences.n_pairs, findings, dict(sft.earlier_answers) if sft else None),
    )


def _sft_split(prompt: list[Turn]) -> str:
    """Return `test` for a held-out instruction, else `train`. The choice depends on the prompt alone."""
    return choose_split(prompt_key(prompt), 0, HELD_OUT_SHARE, 0)


class _SftRows:
    """SFT rows of each split, cut batch by batch."""

    def __init__(self, chat: Chat, settings: TokeniseSettings) -> None:
        assert settings.sft_max_length is not None
        self._chat, self._max_length, self._loss_on_all = chat, settings.sft_max_length, settings.loss_on_all
        self._pieces = {split: [COMPLETION_TOKENS.empty_table()] for split in SPLITS}
        self._cut = {split: dict.fromkeys(COMPLETION_CUTS, 0) for split in self._pieces}
        self.earlier_answers = Counter[str]()

    def add(self, split: str, rows: list[EncodedRow]) -> None:
        found = []
        for row in rows:
            of_row = list(completions(self._chat, row, self._loss_on_all))
            n_earlier = sum(1 for _ in earlier_answers(row.rendered.conversation)) if split == "train" else 0
            if n_earlier:
                n_trained = len(of_row) - 1 + len(of_row[-1].earlier)
                self.earlier_answers.update({"trained": n_trained, "not trained": n_earlier - n_trained})
            found += of_row
        table, counts = cut_completions(found, self._max_length)
        self._pieces[split].append(table)
        self._cut[split] = {name: n + counts[name] for name, n in self._cut[split].items()}

    def tokens(self) -> SftTokens:
        tables = {split: pa.concat_tables(pieces) for split, pieces in self._pieces.items()}
        return SftTokens(tables, self._cut, self._max_length, self._chat.digest)
