"""The layouts of rows: their names and the columns that each requires.

Each layout has a parser in `posttrain.data.formats`.
"""

from __future__ import annotations

from typing import Literal, get_args

PreferenceFormat = Literal[
    "shp", "oasst_messages", "oasst_trees", "ultrafeedback", "chatbot_arena", "pandalm", "llmbar", "two_answers",
    "qa_feedback", "graded_solutions", "scored_pair", "hh_rlhf", "conversational", "explicit", "implicit",
]  # fmt: skip
InstructionFormat = Literal["messages", "sharegpt", "self_instruct", "prompt_completion", "alpaca"]
PREFERENCE_FORMATS = get_args(PreferenceFormat)
INSTRUCTION_FORMATS = get_args(InstructionFormat)
"""Layouts in the order in which `auto` tries them: specific ones before general ones."""

REQUIRED_COLUMNS: dict[str, tuple[str, ...]] = {
    "shp": ("history", "human_ref_A", "human_ref_B", "labels"),
    "oasst_messages": ("message_id", "parent_id", "text", "role", "rank"),
    "oasst_trees": ("message_tree_id", "prompt"),
    "ultrafeedback": ("instruction", "completions"),
    "chatbot_arena": ("conversation_a", "conversation_b", "winner"),
    "pandalm": ("instruction", "response1", "response2", "annotator1"),
    "llmbar": ("input", "output_1", "output_2", "label"),
    "two_answers": ("prompt", "response_1", "response_2", "label"),
    "qa_feedback": ("question", "passages", "prediction 1", "preference"),
    "graded_solutions": ("question", "ground_truth"),
    "scored_pair": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "hh_rlhf": ("chosen", "rejected"),
    "conversational": ("chosen", "rejected"),
    "explicit": ("prompt", "chosen", "rejected"),
    "implicit": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "self_instruct": ("instruction", "instances"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""The columns that a row must have for each layout."""

OPTIONAL_COLUMNS = frozenset({"input", "system", "tools", "lang", "language", "score_A", "score_B"})
"""Columns that are read if a row has them."""

COLUMNS = OPTIONAL_COLUMNS.union(*REQUIRED_COLUMNS.values())
"""All columns that the layouts read. The setting `columns` may map each of these names."""
