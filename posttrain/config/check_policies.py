"""The checks of the data: their names, what each finds, and what may be done about it."""

from __future__ import annotations

from collections.abc import Mapping

REASONS = {
    "unparsable": "the line, or the transcript in it, cannot be read",
    "not_text": "what should be text, or a list of messages, is null or something else",
    "broken_encoding": "the text holds bytes that were not UTF-8: a lone surrogate or U+FFFD",
    "control_characters": "the text holds NUL, a carriage return or another control character",
    "unknown_role": "a message is by neither system, user nor assistant",
    "empty": "the prompt, a turn or a response is blank",
    "turn_order": "user and assistant do not take turns, beginning with the user",
    "unanswered": "a conversation ends with the user",
    "prompt_differs": "chosen and rejected do not answer the same prompt",
    "parts_early": "chosen and rejected part before their last turn, so a response would hold turns by the user",
    "overlong": "the prompt or a response has more characters than data.max_chars",
    "identical": "chosen and rejected are the same",
    "disputed": "fewer of the annotators than data.min_agreement agree with the label",
    "prompt_in_test": "the prompt is also in the test split, which keeps it",
    "prompt_in_validation": "the prompt is also in the validation split, which keeps it",
    "held_out": "the prompt is also in the validation or test split of the preferences",
    "trained_on": "the prompt is also in the training or validation split of the preferences",
    "conflicting": "elsewhere the same two responses are ranked the other way round; both rows go",
    "duplicate": "an earlier row has the same prompt and responses",
    "near_test": "the prompt is nearly one of the test split",
    "near_validation": "the prompt is nearly one of the validation split",
    "near_held_out": "the prompt is nearly one of the validation or test split of the preferences",
    "contaminated": "the row holds a prompt of an evaluation set that data.contamination names",
    "near_duplicate": "an earlier row has nearly the same prompt and responses",
    "unknown_label": "the label, rank or score is none that the layout knows",
    "tool_call": "a message calls a tool, which cannot be trained on yet",
    "bad_tools": "the column `tools` is neither a list of tools nor JSON of one",
    "tie": "no answer is ranked above another",
    "too_close": "the answers' scores are nearer to each other than min_score_ratio or min_score_difference",
    "over_max_pairs": "the prompt has max_pairs_per_prompt pairs without it",
    "other_language": "the row is in none of `languages`",
    "deleted": "the message was deleted by those who collected it",
    "parent_missing": "a message that this one follows was deleted, cannot be used or is not there",
    "no_rival": "no other answer was ranked beside it, nor beside one that follows",
    "not_sampled": "left out for the source to have the share that its weight says",
    "length_bias": "in a source, preferring the longer response is right more often than data.max_length_bias",
    "truncated": "tokens of a prompt or a response do not fit into dpo.max_length and dpo.max_prompt_length",
}
"""Everything that is checked, and what it means of a row (the last two: of a source, of the tokens)."""

DELIBERATE = frozenset(
    "tie too_close over_max_pairs other_language deleted parent_missing no_rival not_sampled".split()
)
"""Reasons that are a dataset's design, or asked for: they say nothing against the source, whatever their share."""

DROP_OR_FAIL = ("drop", "fail")
POLICIES = {
    "broken_encoding": ("drop", "fix", "fail"),
    "control_characters": ("fix", "keep", "drop", "fail"),
    "disputed": ("keep", "drop", "fail"),
    **dict.fromkeys(
        ("conflicting", "duplicate", "near_test", "near_validation", "near_held_out", "contaminated", "near_duplicate"),
        ("drop", "keep", "fail"),
    ),
    **dict.fromkeys(("length_bias", "truncated"), ("keep", "fail")),
}
"""What may be done about a row with a fault, the default first; for those not named here it is `DROP_OR_FAIL`."""


def allowed_policies(check: str) -> tuple[str, ...]:
    """What may be done about what a check finds, the default first."""
    return POLICIES.get(check, DROP_OR_FAIL)


def policy_of(check: str, chosen: Mapping[str, str]) -> str:
    """What is to be done about what a check finds: as chosen (`data.checks`), else its default."""
    return chosen.get(check, allowed_policies(check)[0])
