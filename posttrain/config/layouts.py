"""The layouts of rows: their names and the columns that each requires.

Each layout has a parser in `posttrain.data.formats`.
"""

from __future__ import annotations

from typing import Literal, get_args

PreferenceFormat = Literal[
    "shp", "oasst_messages", "oasst_trees", "ultrafeedback", "chatbot_arena", "pandalm", "llmbar", "pku_saferlhf",
    "helpsteer2", "helpsteer3", "two_answers", "webgpt", "summarize_feedback", "nectar", "distilabel", "qa_feedback",
    "graded_solutions", "openai_preference", "ms_swift", "scored_pair", "hh_rlhf", "conversational", "explicit",
    "chat_template", "sharegpt_ranking", "argilla", "alpaca_ranking", "orca", "input_ranking", "implicit", "kto",
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
    "pku_saferlhf": ("prompt", "response_0", "response_1", "better_response_id"),
    "helpsteer2": ("prompt", "response_1", "response_2", "preference_strength"),
    "helpsteer3": ("context", "response1", "response2", "overall_preference"),
    "two_answers": ("prompt", "response_1", "response_2", "label"),
    "webgpt": ("question", "answer_0", "answer_1", "score_0", "score_1"),
    "summarize_feedback": ("info", "summaries", "choice"),
    "nectar": ("prompt", "answers"),
    "distilabel": ("instruction", "generations", "ratings"),
    "qa_feedback": ("question", "passages", "prediction 1", "preference"),
    "graded_solutions": ("question", "ground_truth"),
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "ms_swift": ("messages",),
    "scored_pair": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "hh_rlhf": ("chosen", "rejected"),
    "conversational": ("chosen", "rejected"),
    "explicit": ("prompt", "chosen", "rejected"),
    "chat_template": ("messages", "chosen", "rejected"),
    "sharegpt_ranking": ("conversations", "chosen", "rejected"),
    "argilla": ("instruction", "chosen_response", "rejected_response"),
    "alpaca_ranking": ("instruction", "chosen", "rejected"),
    "orca": ("question", "chosen", "rejected"),
    "input_ranking": ("input", "chosen", "rejected"),
    "implicit": ("chosen", "rejected"),
    "kto": (),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "self_instruct": ("instruction", "instances"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""The columns that a row must have for each layout. Some layouts require one of several further sets of columns, or values."""

SCORES = (
    *(("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating")),
    *(("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected")),
    *(("chosen_avg_rating", "rejected_avg_rating"), ("chosen_reward", "rejected_reward")),
    *(("reward_chosen", "reward_rejected"), ("chosen_grade", "rejected_grade")),
)
"""Columns with the scores of a chosen and a rejected response; the first that a row has are used. Higher is better."""

KTO_COLUMNS = (
    ("prompt", "completion", "label"),
    ("messages", "label"),
    ("conversations", "kto_tag"),
    ("instruction", "output", "kto_tag"),
)
"""Columns of the layout `kto`: those of TRL, ms-swift, and LLaMA-Factory's two."""

OPTIONAL_COLUMNS: dict[str, frozenset[str]] = {
    "shp": frozenset({"score_A", "score_B"}),
    "hh_rlhf": frozenset({"prompt"}),
    "conversational": frozenset({"prompt"}),
    "scored_pair": frozenset({"prompt"}),
    "oasst_messages": frozenset({"deleted"}),
    "pandalm": frozenset({"input"}),
    "alpaca": frozenset({"input"}),
    "ms_swift": frozenset({"rejected_response", "rejected_messages"}),
    "kto": frozenset(name for names in KTO_COLUMNS for name in names),
}
"""Columns that a layout reads if a row has them."""

PROVENANCE = "provenance"
"""Column that says where a collected pair comes from: models, judge, seed and time. It is kept for reports and not trained on."""

CONTEXT_COLUMNS = frozenset({"system", "system_prompt", "input", "context", "history"})
"""Columns that any layout adds to the prompt."""

COLUMNS = frozenset({"tools", "lang", "language"}).union(
    CONTEXT_COLUMNS, *REQUIRED_COLUMNS.values(), *OPTIONAL_COLUMNS.values(), *SCORES
)
"""All columns that the layouts read. The setting `columns` may map each of these names."""
