"""Layouts with columns for the prompt, the chosen and the rejected response, under the names of different tools.

- `explicit`: prompt, chosen and rejected. The prompt is text, a transcript or a list of messages.
- `conversational`: chosen and rejected are lists of messages: conversations, or responses to a column `prompt`. TRL, axolotl's
  `chat_template.argilla` and `ultra`, UltraFeedback, Tulu 3.
- `scored_pair`: either of these with `score_chosen` and `score_rejected`. Equal scores are a tie. Source: the card of
  HuggingFaceH4/ultrafeedback_binarized.
- `chat_template`: axolotl's `chat_template.default`, with the prompt in `messages`.
- `sharegpt_ranking` and `alpaca_ranking`: LLaMA-Factory's ranking sets, with the prompt in `conversations`, or in `instruction` and
  `input`.
- `argilla`: instruction, chosen_response, rejected_response.
- `orca`: Intel/orca_dpo_pairs, with the prompt in `question`, and `input_ranking`: distilabel's version with `input`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.config.layouts import REQUIRED_COLUMNS, SCORES
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Scored, Values, as_number, split_off_shared_prompt
from posttrain.data.formats.turns import as_turns, is_conversation, is_message, is_transcript, transcript_turns
from posttrain.data.rows import Turn


@dataclass(frozen=True)
class PairColumns:
    """The columns of a layout. Every response may be text, a message, a list of messages or a whole conversation."""

    prompt: str
    chosen: str = "chosen"
    rejected: str = "rejected"
    needs_messages: bool = False
    """Detect the layout only if a response is a message or a list of messages."""
    needs_scores: bool = False

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """The columns that the layout requires."""
        responses = (self.chosen, self.rejected)
        prompt = () if self.needs_messages else (self.prompt,)
        return (*prompt, *responses, *(SCORES[0] if self.needs_scores else ()))

    def matches(self, columns: set[str], rows: Sequence[Values]) -> bool:
        """Return whether the columns and first rows have this layout."""
        if not columns.issuperset(self.COLUMNS):
            return False
        responses = (row.get(name) for row in rows for name in (self.chosen, self.rejected))
        is_usable = _is_messages if self.prompt in columns else _is_whole
        return not self.needs_messages or any(map(is_usable, responses))

    def parse(self, row: Values) -> Pair | Scored:
        """Return the pair in a row, with its scores if the row has them."""
        pair = self._pair(row)
        names = next((both for both in SCORES if both[0] in row and both[1] in row), None)
        if names is None or (not self.needs_scores and (row[names[0]] is None or row[names[1]] is None)):
            return pair
        scored = Scored(pair, *(as_number(row[name]) for name in names))
        if scored.chosen_score == scored.rejected_score:
            raise Unusable("tie")
        return scored

    def _pair(self, row: Values) -> Pair:
        chosen, rejected = (as_turns(row.get(name), "assistant") for name in (self.chosen, self.rejected))
        if not chosen or not rejected:
            raise Unusable("empty")
        if chosen[0]["role"] == rejected[0]["role"] == "assistant":
            return Pair(as_prompt(row.get(self.prompt)), chosen, rejected)
        pair = split_off_shared_prompt(chosen, rejected)
        _check_prompt(row.get(self.prompt), pair.prompt)
        return pair


def as_prompt(value: object) -> list[Turn]:
    """Return the turns of a prompt: text, a transcript that ends where the assistant speaks, or messages."""
    if not isinstance(value, str) or value[:1] not in "\nH \t" or not is_transcript(value):
        return as_turns(value, "user")
    turns = transcript_turns(value)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _check_prompt(value: object, prompt: list[Turn]) -> None:
    """Check that a column with a prompt agrees with the prompt of the conversations: its text or messages are part of it.

    Raises:
        Unusable: it does not.
    """
    if value is None or value == "" or value == []:
        return
    turns = as_turns(value, "user")
    if turns == prompt:
        return
    texts = [turn["content"].strip() for turn in prompt]
    if is_conversation(value) or any(not any(turn["content"].strip() in text for text in texts) for turn in turns):
        raise Unusable("prompt_differs")


def _is_messages(value: object) -> bool:
    return is_message(value) or is_conversation(value)


def _is_whole(value: object) -> bool:
    """Return whether a response is a conversation that begins before the assistant's answer."""
    try:
        return is_conversation(value) and as_turns(value, "user")[0]["role"] != "assistant"
    except Unusable:
        return False


LAYOUTS = {
    "scored_pair": PairColumns("prompt", needs_scores=True),
    "conversational": PairColumns("prompt", needs_messages=True),
    "explicit": PairColumns("prompt"),
    "chat_template": PairColumns("messages"),
    "sharegpt_ranking": PairColumns("conversations"),
    "argilla": PairColumns("instruction", "chosen_response", "rejected_response"),
    "alpaca_ranking": PairColumns("instruction"),
    "orca": PairColumns("question"),
    "input_ranking": PairColumns("input"),
}
"""Layout by name."""
assert all(set(layout.COLUMNS) == set(REQUIRED_COLUMNS[name]) for name, layout in LAYOUTS.items())
