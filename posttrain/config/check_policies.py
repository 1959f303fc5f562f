"""The data checks: their names, what each finds, and the policies that each allows."""

from __future__ import annotations

from collections.abc import Mapping

REASONS = {
    "unparsable": "the line or its transcript cannot be parsed",
    "not_text": "a field that must be text or a list of messages is null or has another type",
    "broken_encoding": "the text has invalid UTF-8: a lone surrogate or U+FFFD; `encoding` of the source reads other files",
    "control_characters": "the text contains NUL, a carriage return or another control character",
    "unknown_role": "the role of a message is not system, developer, user, assistant, tool or one of their other names",
    "empty": "the prompt, a turn or a response is empty or only whitespace",
    "turn_order": "user and assistant turns do not alternate, starting with the user; only tools may answer before the user",
    "unanswered": "the conversation ends with a turn of the user or of a tool",
    "prompt_differs": "chosen and rejected answer different prompts",
    "parts_early": "chosen and rejected differ before their last turn, so a response would contain user turns",
    "overlong": "the prompt or a response has more than data.max_chars characters",
    "identical": "chosen and rejected are identical",
    "disputed": "the share of annotators who agree with the label is below data.min_agreement",
    "prompt_in_test": "the prompt is also in the test split and is kept there",
    "prompt_in_validation": "the prompt is also in the validation split and is kept there",
    "held_out": "the prompt is also in the validation or test split of the preferences",
    "trained_on": "the prompt is also in the training or validation split of the preferences",
    "conflicting": "another row ranks the same two responses the other way round; both rows are removed",
    "duplicate": "an earlier row has the same prompt and responses",
    "near_test": "the prompt is a near copy of one in the test split",
    "near_validation": "the prompt is a near copy of one in the validation split",
    "near_held_out": "the prompt is a near copy of one in the validation or test split of the preferences",
    "contaminated": "the row contains a prompt from an evaluation set listed in data.contamination",
    "near_duplicate": "the prompt and responses are near copies of an earlier row",
    "unknown_label": "the label, rank or score is not valid for the layout",
    "unread_content": "content that changes what the model should say, such as images, is in a column or message that is not read",
    "system_differs": "the system message of the conversation and the column `system` differ",
    "serialised_messages": "the text begins like messages in JSON or Python, and cannot be parsed as such",
    "score_against_choice": "the scores of the row rank the chosen response below the rejected one",
    "not_trained": "the author of the data gives the response weight 0, or sets `train` to false",
    "bad_tool_calls": "the tool calls of a message are neither a list of calls nor JSON of such a list",
    "bad_tools": "the column `tools` is neither a list of tools nor JSON of such a list",
    "tie": "no answer is ranked above another",
    "too_close": "the scores of the answers differ by less than min_score_ratio or min_score_difference",
    "over_max_pairs": "the prompt already has max_pairs_per_prompt pairs",
    "other_language": "the language of the row is not in `languages`",
    "deleted": "the message was marked as deleted by the authors of the dataset",
    "parent_missing": "an earlier message of the conversation was deleted, is unusable or is missing",
    "no_rival": "there is no other ranked answer to compare it with, here or further down the conversation",
    "excluded": "the row is in the file of data.exclude",
    "not_sampled": "left out so that the source has the share given by its weight, or old pairs that of data.replay",
    "length_bias": "the share of a source's pairs whose chosen response is the longer one exceeds data.max_length_bias",
    "truncated": "a prompt or a response does not fit into dpo.max_length and dpo.max_prompt_length",
    "template_refuses": "the chat template cannot render the row (fold: its system message goes into the first user message)",
    "template_leaves_out": "the chat template leaves out text of the row; keep: thoughts of the answer come back as <think> text",
    "control_tokens": "a text spells special tokens of the tokenizer; escape: they are encoded as plain text",
    "already_templated": "a message is already rendered with a chat template, whose marks would stand twice; unwrap: the "
    "template's own marks are removed",
    "stop_in_answer": "a response ends in the text of a stop token, which the template adds; fix: it is removed",
    "no_thoughts": "the generation prompt opens a thought, and a response has none; keep: the thought is empty",
}
"""Each check and what it finds in a row. `length_bias` applies to a source; the last ones apply to the rendered row."""

TOKEN_CHECKS = (
    "truncated", "template_refuses", "template_leaves_out", "control_tokens", "already_templated", "stop_in_answer", "no_thoughts",
)  # fmt: skip
"""Checks of the rendered row, which need the tokenizer."""

DELIBERATE = frozenset(
    "tie not_trained too_close over_max_pairs other_language deleted parent_missing no_rival excluded not_sampled".split()
)
"""Reasons that follow from a dataset's design or from the settings; they do not count towards data.max_drop_share."""

DROP_OR_FAIL = ("drop", "fail")
POLICIES = {
    "broken_encoding": ("drop", "fix", "fail"),
    "control_characters": ("fix", "keep", "drop", "fail"),
    "unread_content": ("fail", "drop", "keep"),
    "score_against_choice": ("drop", "keep", "fail"),
    "disputed": ("keep", "drop", "fail"),
    **dict.fromkeys(
        ("conflicting", "duplicate", "near_test", "near_validation", "near_held_out", "contaminated", "near_duplicate"),
        ("drop", "keep", "fail"),
    ),
    **dict.fromkeys(("length_bias", "truncated"), ("keep", "fail")),
    "template_refuses": ("drop", "fold", "fail"),
    "template_leaves_out": ("keep", "drop", "fail"),
    "control_tokens": ("escape", "keep", "drop", "fail"),
    "already_templated": ("drop", "unwrap", "keep", "fail"),
    "stop_in_answer": ("fix", "drop", "fail"),
    "no_thoughts": ("keep", "drop", "fail"),
}
"""The policies that each check allows, the default first. Checks that are not listed allow `DROP_OR_FAIL`."""

_NOT_A_PAIR = "The row gives no pair to train on."
_WRONG_LABEL = "A label that contradicts itself teaches nothing reliable."
WHY = {
    "broken_encoding": "The lost characters cannot be recovered; `fix` removes the broken ones.",
    "control_characters": "They are remains of conversions. Removing them changes nothing that a reader sees.",
    "disputed": "How much disagreement is acceptable depends on the dataset, so the rows are only counted.",
    "unread_content": "The text alone is another task, so training on it must be a decision.",
    "length_bias": "It is a property of the dataset, not a fault of a row.",
    "truncated": "Long rows are usual. The report says how many tokens are cut off.",
    "overlong": "One very long row can exceed the memory of a GPU.",
    "identical": "DPO has nothing to learn from two equal responses.",
    **dict.fromkeys(("conflicting", "score_against_choice"), _WRONG_LABEL),
    **dict.fromkeys(
        ("prompt_in_test", "prompt_in_validation", "held_out", "near_test", "near_validation", "near_held_out"),
        "A model that was trained on a prompt must not be evaluated on it.",
    ),
    "trained_on": "A model that was trained on a prompt must not be evaluated on it.",
    "contaminated": "Training on evaluation prompts inflates the results on these sets.",
    **dict.fromkeys(("duplicate", "near_duplicate"), "Repeated rows have more weight than intended."),
    **dict.fromkeys(("tie", "no_rival", "unknown_label"), "There is no better response."),
    **dict.fromkeys(
        ("too_close", "over_max_pairs", "other_language", "not_sampled"), "A setting of the source asks for it."
    ),
    "excluded": "`data.exclude` asks for it.",
    "not_trained": "The author of the data asks for it.",
    "template_refuses": "One row must not stop a run, and `fold` changes what the model sees.",
    "template_leaves_out": "Thoughts of the answer come back, so the text is trained on.",
    "control_tokens": "The text keeps its meaning, and cannot end or open a turn.",
    "already_templated": "Marks that stand twice teach a format that no served model sees.",
    "stop_in_answer": "Exactly one stop token ends every answer.",
    "no_thoughts": "Answers without a thought are usual in data for models that may think.",
}
"""Reason for the default policy of each check. `_NOT_A_PAIR` for the others."""


def allowed_policies(check: str) -> tuple[str, ...]:
    """Return the policies that a check allows, the default first."""
    return POLICIES.get(check, DROP_OR_FAIL)


def policy_of(check: str, chosen: Mapping[str, str]) -> str:
    """Return the policy of a check: the one chosen in `data.checks`, or its default."""
    return chosen.get(check, allowed_policies(check)[0])


def reason_of_default(check: str) -> str:
    """Return why the default policy of a check is what it is."""
    return WHY.get(check, _NOT_A_PAIR)
