"""Which rows cannot be used, and why: every dropped row is counted under one reason and shown by example."""

from __future__ import annotations

Turn = dict[str, str]
"""One message: `role` (system, user or assistant) and `content`."""

REASONS = {
    "unparsable": "the line, or the transcript in it, cannot be read",
    "not_text": "what should be text, or a list of messages, is null, broken Unicode or something else",
    "unknown_role": "a message is by neither system, user nor assistant",
    "empty": "the prompt, a turn or a response is blank",
    "turn_order": "user and assistant do not take turns, beginning with the user",
    "unanswered": "a conversation ends with the user",
    "prompt_differs": "chosen and rejected do not answer the same prompt",
    "parts_early": "chosen and rejected part before their last turn, so a response would hold turns by the user",
    "overlong": "the prompt or a response has more characters than data.max_chars",
    "identical": "chosen and rejected are the same",
    "prompt_in_test": "the prompt is also in the test split, which keeps it",
    "prompt_in_validation": "the prompt is also in the validation split, which keeps it",
    "held_out": "the prompt is also in the validation or test split of the preferences",
    "trained_on": "the prompt is also in the training or validation split of the preferences",
    "conflicting": "elsewhere the same two responses are ranked the other way round; both rows go",
    "duplicate": "an earlier row has the same prompt and responses",
}
"""Every reason for which a row is dropped, and what it means."""


class Unusable(Exception):
    """A row that cannot be used, for one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: {REASONS[reason]}")
        self.reason = reason


def check_row(prompt: list[Turn], responses: list[list[Turn]], max_chars: int) -> None:
    """Nothing, if the prompt and each response to it can be trained on.

    Args:
        prompt: turns up to and including the user's last one.
        responses: one for an instruction; chosen and rejected for a pair.
        max_chars: the most characters that the prompt, or one response, may have.

    Raises:
        Unusable: the first reason that applies.
    """
    parts = [prompt, *responses]
    for turn in (turn for part in parts for turn in part):
        if not _is_encodable(turn["content"]):
            raise Unusable("not_text")
        if not turn["content"].strip():
            raise Unusable("empty")
    if not all(parts):
        raise Unusable("empty")
    for response in responses:
        roles = [turn["role"] for turn in prompt + response]
        if roles[0] == "system":
            del roles[0]
        if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
            raise Unusable("turn_order")
        if response[0]["role"] != "assistant":
            raise Unusable("turn_order")
        if response[-1]["role"] != "assistant":
            raise Unusable("unanswered")
        if len(response) > 1:
            raise Unusable("parts_early")
    if any(sum(len(turn["content"]) for turn in part) > max_chars for part in parts):
        raise Unusable("overlong")
    if len(responses) == 2 and _stripped(responses[0]) == _stripped(responses[1]):
        raise Unusable("identical")


def _is_encodable(text: str) -> bool:
    """Whether text has no lone surrogate: half a character, or a byte that was not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _stripped(turns: list[Turn]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in turns]
