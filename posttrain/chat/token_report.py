"""Report on tokens: how long the pairs are, and what does not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from posttrain.chat.findings import Findings
from posttrain.chat.template import Chat
from posttrain.chat.tokenise import PAIR_CUTS, EncodedPair, cut_pairs, encode_pairs
from posttrain.config import Lengths
from posttrain.data.profile import CountHistogram, Counting, Share
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.progress import progress_bar

PARTS = ("prompt", "chosen", "rejected")
BATCH_ROWS = 1000
N_EXAMPLES = 10
MAX_COUNTED = 5_000
"""`report_tokens` counts about this many pairs, spread evenly, unless all pairs must fit."""


class TokenReport(BaseModel):
    """Number of tokens in the pairs of all splits, and what is cut off. Responses include their stop token."""

    model_config = ConfigDict(frozen=True)

    template: str
    max_length: int
    max_prompt_length: int
    n_pairs: int
    n_counted: int
    """Number of pairs that the figures were computed on. If fewer than `n_pairs`, they are sampled evenly from every split."""
    lengths: dict[str, CountHistogram]
    """Of prompts, chosen and rejected responses before anything is cut off."""
    cut: dict[str, int]
    """Number of pairs that were cut or left out: see `posttrain.chat.tokenise.cut_pairs`."""
    n_tokens_lost: dict[str, int]
    """Number of tokens cut off the prompts, chosen and rejected responses of the pairs that are used."""
    n_stops_lost: dict[str, int]
    """Chosen and rejected responses that are used without their stop token. A model does not learn to stop there."""
    longer_is_chosen: Share | None
    """Share of pairs whose chosen response has more tokens. Pairs of equal length are not counted."""
    examples: dict[str, list[str]]
    """Ids of a few pairs that are left out, and of a few that are cut."""
    findings: dict[str, int] = {}
    """Rows by the checks of the rendered row that found something (`posttrain.config.check_policies.TOKEN_CHECKS`)."""
    dropped: dict[str, int] = {}
    """Rows that are not used because of these checks."""
    left_out: dict[str, int] = {}
    """Rows by what the chat template leaves out of them."""
    finding_examples: dict[str, list[str]] = {}
    """A few rows by check."""
    earlier_answers: dict[str, int] = {}
    """Answers in the prompts of SFT rows: `trained` and `not trained` (sft.loss_on)."""
    notes: list[str] = []
    """What a reader must know about the template, such as the date that it prints."""


class TokenCounter:
    """Collects the figures of a token report, batch by batch."""

    def __init__(self, chat: Chat, lengths: Lengths) -> None:
        self._chat, self._lengths = chat, lengths
        self._n_counted = 0
        self._histograms = {part: Counting() for part in PARTS}
        self._cut = Counter(dict.fromkeys(PAIR_CUTS, 0))
        self._lost, self._stops, self._longer = Counter[str](), Counter[str](), Counter[str]()
        self._examples: dict[str, list[str]] = {"left_out": [], "cut": []}

    @property
    def cut(self) -> dict[str, int]:
        """Return the number of pairs that have been cut or left out so far, by reason (`PAIR_CUTS`)."""
        return dict(self._cut)

    def add(self, whole: Sequence[EncodedPair]) -> list[EncodedPair]:
        """Count a batch of pairs, and return the usable pairs, cut to the maximum lengths."""
        kept, counts = cut_pairs(whole, self._lengths.max_length, self._lengths.max_prompt_length)
        self._n_counted += len(whole)
        self._cut.update(counts)
        used = {pair.id: pair for pair in kept}
        for part, column in zip(PARTS, ("prompt_ids", "chosen_ids", "rejected_ids"), strict=True):
            n_whole = {pair.id: len(getattr(pair, column)) for pair in whole}
            self._histograms[part].add(np.array(list(n_whole.values()), np.int64))
            self._lost[part] += sum(n_whole[pair.id] - len(getattr(pair, column)) for pair in kept)
            if part != "prompt":
                self._stops[part] += sum(getattr(pair, column)[-1] not in self._chat.stop_ids for pair in kept)
        self._longer.update(_longer(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in whole)
        self._add_examples("left_out", (pair.id for pair in whole if pair.id not in used))
        self._add_examples("cut", (pair.id for pair in whole if used.get(pair.id, pair) != pair))
        return kept

    def check_all_fit(self) -> None:
        """Check that no pair was cut or left out.

        Raises:
            UserError: with the counts and the ids of a few such pairs.
        """
        if any(self._cut.values()):
            counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self._cut.items() if n)
            raise UserError(
                f"data.checks: truncated is set to fail, and some of {self._n_counted} pairs do not fit ({counts}), for example "
                f"{', '.join([*self._examples['left_out'], *self._examples['cut']][:3])}: raise dpo.max_length "
                f"({self._lengths.max_length}) or dpo.max_prompt_length ({self._lengths.max_prompt_length}), lower "
                "data.max_chars, or set truncated to keep"
            )

    def report(self, n_pairs: int, findings: Findings, turns: dict[str, int] | None = None) -> TokenReport:
        """Return the report.

        Args:
            n_pairs: number of pairs in all splits.
            findings: of the checks of the rendered rows.
            turns: number of earlier answers in the rows of SFT.
        """
        n_unequal = self._longer["chosen"] + self._longer["rejected"]
        return TokenReport(
            template=self._chat.template,
            max_length=self._lengths.max_length,
            max_prompt_length=self._lengths.max_prompt_length,
            n_pairs=n_pairs,
            n_counted=self._n_counted,
            lengths={part: self._histograms[part].histogram() for part in PARTS},
            cut=dict(self._cut),
            n_tokens_lost={part: self._lost[part] for part in PARTS},
            n_stops_lost={part: self._stops[part] for part in PARTS[1:]},
            longer_is_chosen=Share.of(self._longer["chosen"], n_unequal) if n_unequal else None,
            examples=self._examples,
            findings={name: n for name, n in findings.found.items() if n},
            dropped=findings.counts(),
            left_out=dict(findings.left_out),
            finding_examples=findings.examples,
            earlier_answers=turns or {},
            notes=list(_notes(self._chat)),
        )

    def _add_examples(self, kind: str, ids: Iterator[str]) -> None:
        self._examples[kind] += islice(ids, N_EXAMPLES - len(self._examples[kind]))


def report_tokens(
    chat: Chat, preferences: Preferences, lengths: Lengths, findings: Findings | None = None, *, must_fit: bool = False
) -> TokenReport:
    """Return how many tokens the pairs have and what is cut off, without keeping the tokens.

    Args:
        must_fit: count every pair, and raise if one is cut.

    Raises:
        UserError: a pair is cut or left out, and `must_fit` is set.
    """
    findings = findings or Findings()
    counter = TokenCounter(chat, lengths)
    step = 1 if must_fit else max(1, math.ceil(preferences.n_pairs / MAX_COUNTED))
    samples = [rows.select(range(0, len(rows), step)) for rows in preferences.splits().values()]
    with progress_bar(sum(map(len, samples)), "Counting tokens", " pairs") as bar:
        for sample in samples:
            for batch in batches(sample):
                counter.add(encode_pairs(chat, batch, findings))
                bar.update(len(batch))
    if must_fit:
        counter.check_all_fit()
    return counter.report(preferences.n_pairs, findings)


def batches(rows: Dataset) -> Iterator[Dataset]:
    """Yield the rows in batches of at most `BATCH_ROWS`."""
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows.select(range(start, min(start + BATCH_ROWS, len(rows))))


def _notes(chat: Chat) -> Iterator[str]:
    if chat.has_clock:
        yield (
            f"The chat template prints the date. It is {chat.settings.day:%Y-%m-%d} in every stage and in the exported model "
            "(model.template_date)."
        )
    if chat.settings.kwargs:
        values = ", ".join(f"{name}: {value}" for name, value in chat.settings.kwargs.items())
        yield f"The chat template is given {values} in every stage and in the exported model (model.chat_template_kwargs)."
    if chat.renderer.opens_thought:
        yield "The generation prompt opens a thought, with which every answer begins."


def _longer(n_chosen: int, n_rejected: int) -> str:
    return "chosen" if n_chosen > n_rejected else "rejected" if n_chosen < n_rejected else "neither"
