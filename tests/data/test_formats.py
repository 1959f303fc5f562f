"""Layouts: each row gives the expected turns, or the reason for which it is unusable."""

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config import DataSection, Source
from posttrain.config.check_policies import REASONS
from posttrain.config.layouts import COLUMNS
from posttrain.data.checks import Unusable, check_row
from posttrain.data.formats import (
    INSTRUCTION_LAYOUTS,
    PREFERENCE_LAYOUTS,
    check_columns,
    find_layout,
    prepare,
    read_rows,
    rename,
)
from posttrain.data.formats.turns import as_tools
from posttrain.data.loader import load_preferences
from posttrain.errors import UserError

LAYOUTS = PREFERENCE_LAYOUTS | INSTRUCTION_LAYOUTS


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


HUMAN, REPLY = "\n\nHuman: ", "\n\nAssistant: "
U, A, B = user("q"), assistant("a"), assistant("b")


SOURCE = Source(path="x")


def read(layout, *rows, **settings):
    """Return the checked results of parsing rows: for each row its pairs as parts, or the reasons for having none."""
    source = Source(path="x", **settings)
    prepared = (row if row is None else prepare(LAYOUTS[layout], row) for row in rows)
    found = list(read_rows(source, LAYOUTS[layout], enumerate(prepared)))  # type: ignore[type-var]
    assert sorted(i for i, _ in found) == list(range(len(rows)))  # each row is answered for once
    return [[checked(item) for item in items] for _, items in sorted(found, key=lambda answer: answer[0])]


def checked(item):
    try:
        if isinstance(item, Unusable):
            raise item
        check_row(item.prompt, list(item[1:]), max_chars=100)
    except Unusable as unusable:
        return unusable.reason
    return tuple(item)


def outcome(layout, row):
    """Return the result of parsing one row: the parts of its pair, a list of them if there are several, or the reason."""
    (found,) = read(layout, row)
    return found[0] if len(found) == 1 else found


SG_U, SG_A = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
# As the sets' cards show a row, less columns that no layout reads.
SHP = {
    "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "How do I seed raspberries?",
    "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "score_A": 340, "score_B": 166, "human_ref_A": "Use a sieve.",
    "human_ref_B": "Do not.", "labels": 1, "seconds_difference": 238.0, "score_ratio": 2.0481927711,
}  # fmt: skip
ULTRA = {
    "source": "evol_instruct",
    "instruction": "q",
    "models": ["a", "b", "c", "d"],
    "completions": [
        {
            "model": "a",
            "response": "good",
            "fine-grained_score": 4.0,
            "overall_score": 1.0,
            "custom_system_prompt": "s",
        },
        {"model": "b", "response": "worst", "fine-grained_score": 1.25, "overall_score": 9.0},
        {"model": "c", "response": "best", "fine-grained_score": 5, "overall_score": 5.0},
        {"model": "d", "response": "also good", "overall_score": 4.0},
        {"model": "e", "response": None, "fine-grained_score": 5.0},
    ],
}
ARENA = {
    "question_id": "1", "model_a": "m", "model_b": "n", "judge": "arena_user_1", "conversation_a": [U, A],
    "conversation_b": [U, B], "turn": 1, "anony": True, "language": "English",
}  # fmt: skip
PKU = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
HELPSTEER = {
    "prompt": "q",
    "response_1": "a",
    "response_2": "b",
    "preference_strength": -3,
    "preference_statement": "x",
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "1", "full_text": "q"},
    **{"answer_0": "a", "score_0": -0.5, "answer_1": "b", "score_1": 0.5, "quotes_0": {"title": [], "extract": []}},
}
SUMMARIES = {
    "info": {"id": "1", "post": "It ran.", "title": "Cat", "subreddit": "pets", "site": None, "article": None},
    "summaries": [{"text": " a", "policy": "x", "note": None}, {"text": " b", "policy": "y", "note": None}],
    "choice": 1,
}
PANDA = {"idx": 0, "instruction": "Add", "input": "1, 2", "response1": "a", "response2": "b", "annotator1": 0}
QA = {
    "question": "When?",
    "passages": [["Bloom", "An album.", "By Sivan."], ["Rose", "A flower."]],
    "prediction 1": "a",
    "prediction 2": "b",
    "prediction 3": "c",
}
QA_PROMPT = user("When?\n\nBloom\nAn album. By Sivan.\n\nRose\nA flower.")
GRADED = {
    "question": "q",
    "ground_truth": "x",
    "m1": {"is_correct": True, "solution": "a"},
    "m2": {"is_correct": False, "solution": "b"},
    "m3": {"is_correct": False, "solution": "c"},
}


def node(text, role="assistant", **values):
    return {"message_id": text, "text": text, "role": role, "lang": "en", "replies": [], **values}


TREE = {
    "message_tree_id": "1",
    "tree_state": "ready_for_export",
    "prompt": node("q", "prompter", replies=[
        node("c", rank=2),
        node("a", rank=0, replies=[node("p", "prompter", replies=[node("e", rank=1), node("d", rank=0)])]),
        node("b", rank=1, replies=[node("x", "prompter", deleted=True, replies=[node("y", rank=0), node("z", rank=1)])]),
        node("unranked"),
        node("gone", rank=3, deleted=True),
    ]),
}  # fmt: skip

PAIRS = [
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": "b"}, ([U], [A], [B])),
    ("explicit", {"prompt": [system("s"), U], "chosen": "a", "rejected": "b"}, ([system("s"), U], [A], [B])),
    ("explicit", {"prompt": [U, A, U], "chosen": [A], "rejected": "b"}, ([U, A, U], [A], [B])),
    ("explicit", {"prompt": "q", "chosen": " a\n", "rejected": "b"}, ([U], [assistant(" a\n")], [B])),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": "a "}, "identical"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": None}, "not_text"),
    ("explicit", {"prompt": "q", "chosen": "a"}, "not_text"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": float("nan")}, "not_text"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": ["b"]}, "not_text"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": " \n"}, "empty"),
    ("explicit", {"prompt": "", "chosen": "a", "rejected": "b"}, "empty"),
    ("explicit", {"prompt": [], "chosen": "a", "rejected": "b"}, "empty"),
    ("explicit", {"prompt": "q" * 101, "chosen": "a", "rejected": "b"}, "overlong"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": "b" * 100}, ([U], [A], [assistant("b" * 100)])),
    ("explicit", {"prompt": [U, A], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [A, U], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [U, system("s")], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [{"role": "tool", "content": "q"}], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [{"role": "critic", "content": "q"}], "chosen": "a", "rejected": "b"}, "unknown_role"),
    ("implicit", {"chosen": "Is it so? Yes, it is", "rejected": "Is it so? No"},
     ([user("Is it so?")], [assistant("Yes, it is")], [assistant("No")])),
    ("implicit", {"chosen": "Who? Ann", "rejected": "Who? Anna"},
     ([user("Who?")], [assistant("Ann")], [assistant("Anna")])),
    ("implicit", {"chosen": "Yes", "rejected": "No"}, "prompt_differs"),
    ("implicit", {"chosen": "Who? Ann", "rejected": " Who? Ann "}, "identical"),
    ("implicit", {"chosen": "Who? Ann", "rejected": ""}, "empty"),
    ("conversational", {"chosen": [U, A], "rejected": [U, B]}, ([U], [A], [B])),
    ("conversational", {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}, ([U], [A], [B])),
    ("conversational", {"prompt": [U], "chosen": [U, A], "rejected": [U, B]}, ([U], [A], [B])),
    ("conversational", {"prompt": [system("s"), U], "chosen": [U, A], "rejected": [U, B]}, "prompt_differs"),
    ("conversational", {"prompt": "q", "chosen": [A], "rejected": [B]}, ([U], [A], [B])),
    ("conversational", {"prompt": [system("s"), U], "chosen": [A], "rejected": [B]}, ([system("s"), U], [A], [B])),
    ("conversational", {"chosen": [A], "rejected": [B]}, "not_text"),
    ("conversational", {"chosen": [U, A, U, A], "rejected": [U, A, U, B]}, ([U, A, U], [A], [B])),
    ("conversational", {"chosen": [U, A, U, A], "rejected": [U, B, U, A]}, "parts_early"),
    ("conversational", {"chosen": [U, A], "rejected": [U, A]}, "identical"),
    ("conversational", {"chosen": [U, A], "rejected": [user("p"), B]}, "prompt_differs"),
    ("conversational", {"chosen": [U, A], "rejected": [U, A, U]}, "unanswered"),
    ("conversational", {"chosen": [U, A], "rejected": []}, "empty"),
    ("conversational", {"chosen": [U, A], "rejected": [U, {"role": "assistant", "content": None}]}, "not_text"),
    ("conversational", {"chosen": [U, A], "rejected": ["x"]}, "not_text"),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}a", "rejected": f"{HUMAN}q{REPLY}b"}, ([U], [A], [B])),
    ("hh_rlhf", {"prompt": f"{HUMAN}q\n\nAssistant:", "chosen": " a", "rejected": " b"}, ([U], [A], [B])),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}Human: a", "rejected": f"{HUMAN}q{REPLY}b"},
     ([U], [assistant("Human: a")], [B])),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}a", "rejected": f"{HUMAN}p{REPLY}b"}, "prompt_differs"),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}a", "rejected": "no transcript"}, "unparsable"),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}a", "rejected": f"{HUMAN}q{REPLY}"}, "empty"),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}a{HUMAN}q", "rejected": f"{HUMAN}q{REPLY}b"}, "unanswered"),
    ("hh_rlhf", {"chosen": f"{HUMAN}q{REPLY}a{REPLY}a", "rejected": f"{HUMAN}q{REPLY}b"}, "turn_order"),
    # The Handbook's preference set, mlabonne/llmtwin-dpo, has its columns in this order.
    ("explicit", {"prompt": "q", "rejected": "b", "chosen": "a"}, ([U], [A], [B])),
    ("conversational", {"chosen": [SG_U, SG_A], "rejected": [SG_U, {"from": "gpt", "value": "b"}]}, ([U], [A], [B])),
    ("conversational", {"chosen": [U, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
                        "rejected": [U, B]}, ([U], [A], [B])),
    ("conversational", {"chosen": [U, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
                        "rejected": [U, B]},
     ([U], [{"role": "assistant", "content": "", "tool_calls": '[{"id": 1}]'}], [B])),
    ("conversational", {"chosen": [U, {"role": "assistant", "content": None, "tool_calls": "{"}],
                        "rejected": [U, B]}, "bad_tool_calls"),
    ("pku_saferlhf", PKU, ([U], [B], [A])),
    ("pku_saferlhf", PKU | {"better_response_id": 0}, ([U], [A], [B])),
    ("pku_saferlhf", PKU | {"better_response_id": 2}, "unknown_label"),
    ("helpsteer2", HELPSTEER, ([U], [A], [B])),
    ("helpsteer2", HELPSTEER | {"preference_strength": 1}, ([U], [B], [A])),
    ("helpsteer2", HELPSTEER | {"preference_strength": 0}, "tie"),
    ("helpsteer2", HELPSTEER | {"preference_strength": -100}, "unknown_label"),
    ("helpsteer3", {"context": [U], "response1": "a", "response2": "b", "overall_preference": 3}, ([U], [B], [A])),
    ("webgpt", WEBGPT, ([U], [B], [A])),
    ("webgpt", WEBGPT | {"score_0": 0, "score_1": 0}, "tie"),
    ("summarize_feedback", SUMMARIES, ([user("SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: It ran.\n\nTL;DR:")], [B], [A])),
    ("summarize_feedback", SUMMARIES | {"info": {"article": "News."}, "choice": 0}, ([user("ARTICLE: News.\n\nTL;DR:")], [A], [B])),
    ("nectar", {"prompt": f"{HUMAN}q{REPLY}", "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}]},
     ([U], [A], [B])),
    ("distilabel", {"instruction": "q", "generations": ["b", "a", None], "ratings": [2, 5, None]}, ([U], [A], [B])),
    ("openai_preference", {"input": {"messages": [U], "tools": []}, "preferred_output": [A], "non_preferred_output": [B]},
     ([U], [A], [B])),
    ("ms_swift", {"messages": [U, A], "rejected_response": "b"}, ([U], [A], [B])),
    ("ms_swift", {"messages": [U, A], "rejected_messages": [U, B]}, ([U], [A], [B])),
    ("ms_swift", {"messages": [U], "rejected_response": "b"}, "unanswered"),
    ("chat_template", {"messages": [U], "chosen": A, "rejected": B}, ([U], [A], [B])),
    ("sharegpt_ranking", {"conversations": [SG_U], "chosen": SG_A, "rejected": {"from": "gpt", "value": "b"}}, ([U], [A], [B])),
    ("argilla", {"instruction": "q", "chosen_response": "a", "rejected_response": "b"}, ([U], [A], [B])),
    ("alpaca_ranking", {"instruction": "q", "chosen": "a", "rejected": "b"}, ([U], [A], [B])),
    ("orca", {"question": "q", "chosen": "a", "rejected": "b"}, ([U], [A], [B])),
    ("input_ranking", {"input": "q", "chosen": "a", "rejected": "b"}, ([U], [A], [B])),
    ("explicit", {"prompt": f"{HUMAN}q\n\nAssistant:", "chosen": "a", "rejected": "b"}, ([U], [A], [B])),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 2}, "score_against_choice"),
    ("hh_rlhf", {"prompt": f"{HUMAN}q", "chosen": "a", "rejected": "b"}, ([U], [A], [B])),
    ("hh_rlhf", {"prompt": f"{HUMAN}q{REPLY}", "chosen": f"{HUMAN}q{REPLY}a", "rejected": f"{HUMAN}q{REPLY}b"}, ([U], [A], [B])),
    ("hh_rlhf", {"prompt": f"{HUMAN}q", "chosen": f"{REPLY}a", "rejected": f"{REPLY}b"}, ([U], [A], [B])),
    ("explicit", {"prompt": "q", "chosen": json.dumps([U, A]), "rejected": str([U, B])}, ([U], [A], [B])),
    ("explicit", {"prompt": "q", "chosen": json.dumps([A]), "rejected": str(B)}, ([U], [A], [B])),
    ("explicit", {"prompt": str([system("s"), U]), "chosen": "a", "rejected": "b"}, ([system("s"), U], [A], [B])),
    ("explicit", {"prompt": "q", "chosen": str([U, A]).replace("}, {", "} {"), "rejected": "b"}, "serialised_messages"),
    ("explicit", {"prompt": "q", "chosen": '{"role": "chef", "content": "soup"}', "rejected": "b"},
     ([U], [assistant('{"role": "chef", "content": "soup"}')], [B])),
    ("explicit", {"prompt": "q", "chosen": '[{"title": "user"}]', "rejected": "b"}, ([U], [assistant('[{"title": "user"}]')], [B])),
    ("conversational", {"prompt": "q", "chosen": A, "rejected": B}, ([U], [A], [B])),
    ("conversational", {"prompt": "other", "chosen": [U, A], "rejected": [U, B]}, "prompt_differs"),
    ("shp", SHP, ([user("How do I seed raspberries?")], [assistant("Use a sieve.")], [assistant("Do not.")])),
    ("shp", SHP | {"labels": 0}, "score_against_choice"),
    ("shp", SHP | {"labels": 0, "score_B": 900},
     ([user("How do I seed raspberries?")], [assistant("Do not.")], [assistant("Use a sieve.")])),
    ("shp", SHP | {"labels": 2}, "unknown_label"),
    ("shp", SHP | {"labels": None}, "unknown_label"),
    ("shp", SHP | {"labels": True}, "unknown_label"),
    ("shp", SHP | {"score_A": float("nan")}, "unknown_label"),
    ("shp", {k: v for k, v in SHP.items() if not k.startswith("score")},
     ([user("How do I seed raspberries?")], [assistant("Use a sieve.")], [assistant("Do not.")])),
    ("shp", SHP | {"history": ""}, "empty"),
    ("scored_pair", {"prompt": "q", "prompt_id": "1", "chosen": [U, A], "rejected": [U, B], "messages": [U, A],
                     "score_chosen": 8.5, "score_rejected": 8.0}, ([U], [A], [B])),
    ("scored_pair", {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 5, "score_rejected": 3}, ([U], [A], [B])),
    ("scored_pair", {"prompt": "q", "chosen": [U, A], "rejected": [U, B], "score_chosen": 8, "score_rejected": 8.0}, "tie"),
    ("scored_pair", {"prompt": "q", "chosen": [U, A], "rejected": [U, B], "score_chosen": None, "score_rejected": 8.0},
     "unknown_label"),
    ("ultrafeedback", ULTRA, [([U], [assistant("best")], [assistant("worst")]),
                              ([U], [assistant("good")], [assistant("worst")]),
                              ([U], [assistant("also good")], [assistant("worst")]),
                              ([U], [assistant("best")], [assistant("good")]),
                              ([U], [assistant("best")], [assistant("also good")])]),
    ("ultrafeedback", ULTRA | {"completions": ULTRA["completions"][:1]}, "no_rival"),
    ("ultrafeedback", ULTRA | {"completions": [ULTRA["completions"][0]] * 2}, "tie"),
    ("ultrafeedback", ULTRA | {"completions": []}, "no_rival"),
    ("ultrafeedback", ULTRA | {"completions": "x"}, "not_text"),
    ("ultrafeedback", ULTRA | {"completions": [{"response": "x", "fine-grained_score": "N/A"}]}, "unknown_label"),
    ("chatbot_arena", ARENA | {"winner": "model_a"}, ([U], [A], [B])),
    ("chatbot_arena", ARENA | {"winner": "model_b"}, ([U], [B], [A])),
    ("chatbot_arena", ARENA | {"winner": "tie"}, "tie"),
    ("chatbot_arena", ARENA | {"winner": "tie (bothbad)"}, "tie"),
    ("chatbot_arena", ARENA | {"winner": None}, "unknown_label"),
    ("chatbot_arena", ARENA | {"winner": "model_a", "conversation_a": [U, A, U, A], "conversation_b": [U, B, U, A]},
     "parts_early"),
    ("chatbot_arena", ARENA | {"winner": "model_a", "conversation_b": None}, "not_text"),
    *[("pandalm", PANDA | dict(zip(("annotator1", "annotator2", "annotator3"), votes, strict=True)), expected)
      for votes, expected in [
          ((1, 1, 1), ([user("Add\n\n1, 2")], [A], [B])), ((2, 1, 2), ([user("Add\n\n1, 2")], [B], [A])),
          ((1, 0, 1), ([user("Add\n\n1, 2")], [A], [B])), ((0, 0, 1), "tie"), ((0, 0, 0), "tie"), ((0, 1, 2), "tie"),
          ((1, 1, 3), "unknown_label"), ((1, 1, None), "unknown_label")]],
    ("pandalm", PANDA | {"annotator1": 1, "annotator2": 2}, "tie"),
    ("two_answers", {"prompt": "q", "response_1": "a", "response_2": "b", "label": 1}, ([U], [A], [B])),
    ("two_answers", {"prompt": [U], "response_1": "a", "response_2": [B], "label": "B"}, ([U], [B], [A])),
    ("two_answers", {"prompt": "q", "response_1": "a", "response_2": "b", "label": 2.0}, ([U], [B], [A])),
    ("two_answers", {"prompt": "q", "response_1": "a", "response_2": "b", "label": "tie"}, "tie"),
    ("two_answers", {"prompt": "q", "response_1": "a", "response_2": "b", "label": 0}, "unknown_label"),
    ("two_answers", {"prompt": "q", "response_1": "a", "response_2": "b", "label": True}, "unknown_label"),
    ("llmbar", {"input": "q", "output_1": "a", "output_2": "b", "label": 2}, ([U], [B], [A])),
    ("qa_feedback", QA | {"preference": [0, 1, 2]}, [([QA_PROMPT], [A], [assistant("c")]), ([QA_PROMPT], [assistant("c")], [B])]),
    ("qa_feedback", QA | {"preference": [0, 0, 0]}, "tie"),
    ("qa_feedback", QA | {"preference": [0, 1]}, "unknown_label"),
    ("qa_feedback", QA | {"preference": [1, 1, 5]}, "unknown_label"),
    ("qa_feedback", QA | {"preference": [1, 1, 1], "passages": [[]]}, "not_text"),
    ("graded_solutions", GRADED, [([U], [A], [B]), ([U], [A], [assistant("c")])]),
    ("graded_solutions", GRADED | {"m1": {"is_correct": False, "solution": "a"}}, "tie"),
    ("graded_solutions", {"question": "q", "ground_truth": "a", "m1": {"is_correct": True, "solution": "a"}}, "no_rival"),
    ("graded_solutions", GRADED | {"m1": {"is_correct": "yes", "solution": "a"}}, "unknown_label"),
    ("graded_solutions", GRADED | {"m1": {"is_correct": True, "solution": None}}, "not_text"),
    ("oasst_trees", TREE, [([U], [A], [assistant("c")]), ([U], [A], [B]), ([U], [B], [assistant("c")]),
                           ([U, A, user("p")], [assistant("d")], [assistant("e")])]),
    ("oasst_trees", TREE | {"prompt": node("q", "prompter", replies=[node("a", rank=0)])}, "no_rival"),
    ("oasst_trees", TREE | {"prompt": node("q", "prompter", deleted=True)}, "deleted"),
    ("oasst_trees", TREE | {"prompt": "q"}, "not_text"),
]  # fmt: skip

EXAMPLES = [
    ("alpaca", {"instruction": "Add", "input": "1, 2", "output": "3"}, ([user("Add\n\n1, 2")], [assistant("3")])),
    ("alpaca", {"instruction": "q", "input": " ", "output": "a"}, ([U], [A])),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}, ([U], [A])),
    ("alpaca", {"instruction": "q", "output": "a"}, ([U], [A])),
    ("alpaca", {"instruction": " ", "input": "x", "output": "a"}, "empty"),
    ("alpaca", {"instruction": "q", "input": 3, "output": "a"}, "not_text"),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, ([U], [A])),
    ("prompt_completion", {"prompt": [system("s"), U], "completion": [A]}, ([system("s"), U], [A])),
    ("prompt_completion", {"prompt": "q", "completion": ""}, "empty"),
    ("messages", {"messages": [system("s"), U, A, U, B]}, ([system("s"), U, A, U], [B])),
    ("messages", {"messages": [U, A, U]}, "unanswered"),
    ("messages", {"messages": [A]}, "empty"),
    ("messages", {"messages": []}, "empty"),
    ("messages", {"messages": "q"}, "not_text"),
    ("messages", {"messages": [U, A, A]}, "turn_order"),
    # The Handbook's instruction set, mlabonne/llmtwin.
    ("alpaca", {"instruction": "Write a paragraph", "output": "a"}, ([user("Write a paragraph")], [A])),
    ("sharegpt", {"id": "1", "conversations": [SG_U, SG_A, SG_U, {"from": "gpt", "value": "b"}]}, ([U, A, U], [B])),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, SG_U, SG_A]}, ([system("s"), U], [A])),
    ("sharegpt", {"conversations": [SG_A, SG_U, SG_A]}, "turn_order"),
    ("sharegpt", {"conversations": [SG_U, SG_A, SG_U]}, "unanswered"),
    ("sharegpt", {"conversations": [SG_U, {"from": "observation", "value": "b"}]}, "unanswered"),
    ("sharegpt", {"conversations": None}, "not_text"),
    ("self_instruct", {"instruction": "Add", "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "a"}]},
     [([user("Add\n\n1, 2")], [assistant("3")]), ([user("Add")], [A])]),
    ("self_instruct", {"instruction": "Add", "instances": []}, "empty"),
    ("self_instruct", {"instruction": "Add", "instances": ["x"]}, "not_text"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "expected"), PAIRS + EXAMPLES)
def test_row_gives_turns_or_a_reason(layout, row, expected):
    assert outcome(layout, row) == expected


def test_layouts_are_detected_from_rows():
    for cases, layouts in ((PAIRS, PREFERENCE_LAYOUTS), (EXAMPLES, INSTRUCTION_LAYOUTS)):
        for layout, row, expected in cases:
            if not isinstance(expected, str):
                found = find_layout(Source(path="x"), [row], layouts)[0]  # type: ignore[misc, list-item]
                # Rows of `explicit` with messages as responses are read as `conversational`.
                assert found == layout or (layout == "explicit" and outcome(found, row) == expected), row


def test_defective_first_row_does_not_prevent_detection():
    rows = [{"chosen": None, "rejected": 3}, {"chosen": [U, A], "rejected": [U, B]}]
    assert find_layout(Source(path="x"), rows, PREFERENCE_LAYOUTS)[0] == "conversational"


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"query": "q", "good": "a", "bad": "b"}, {},
         "x: its columns (bad, good, query) match no layout; the nearest one, explicit, also needs prompt, chosen, "
         "rejected. If they have other names, map them with "
         "`columns: {prompt: query, chosen: good, rejected: bad}`"),
        ({"query": "q", "good": ["a"], "bad": "b"}, {},
         "also needs prompt, chosen, rejected, and its rows do not parse with other columns in their place"),
        ({"prompt": "q", "chosen": "a"}, {}, "the nearest one, explicit, also needs rejected."),
        ({"ask": "q", "chosen": "a", "rejected": "b"}, {}, "the nearest one, explicit, also needs prompt."),
        ({"prompt;chosen;rejected": "q;a;b"}, {}, "its columns (prompt;chosen;rejected) match no layout"),
        ({"prompt;chosen;rejected": "q;a;b"}, {}, "CSV files must use commas as separators"),
        ({"prompt": "q", "answer_a": "a", "answer_b": "b", "winner": "a"}, {},
         "`columns: {response_1: answer_a, response_2: answer_b, label: winner}`"),
        ({"chosen": "a", "rejected": "b"}, {}, "its columns (chosen, rejected) match no layout"),
        ({"chosen": "a", "rejected": "b"}, {"format": "explicit"}, "do not match layout explicit, which also needs prompt."),
        ({"chosen": "a", "rejected": "b"}, {"format": "alpaca"}, "alpaca is not allowed here: must be auto, shp,"),
    ],
)  # fmt: skip
def test_unknown_layout_error_names_the_nearest_one_and_the_fix(row, settings, words):
    with pytest.raises(UserError) as error:
        find_layout(Source(path="x", **settings), [row], PREFERENCE_LAYOUTS)
    assert words in str(error.value)


def test_columns_can_have_other_names():
    row = {"question": "q", "prompt": "not this", "answer": "a", "n": 1}
    columns = {"prompt": "question", "completion": "answer"}
    assert rename(row, columns) == {"prompt": "q", "completion": "a", "n": 1}
    check_columns(Source(path="x", columns=columns), [row])
    with pytest.raises(UserError, match=r"prompt: there is no column 'questoin' \(did you mean 'question'\?\)"):
        check_columns(Source(path="x", columns={"prompt": "questoin"}), [row])


def message(name, parent, text, rank=None, role="assistant", **values):
    return {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": rank, "lang": "en", **values}


def test_flat_messages_give_pairs_of_ranked_siblings_in_any_order():
    rows = [
        message("a2", "q", "c", rank=2),
        message("a0", "q", "a", rank=0),
        message("p", "a0", "p", role="prompter"),
        message("q", None, "q", role="prompter"),
        message("a1", "q", "b", rank=1),
        message("e", "p", "e", rank=1),
        message("d", "p", "d", rank=0),
        message("alone", "p", "f"),
        message("gone", "q", "g", rank=3, deleted=True),
        message("of-gone", "gone", "h", role="prompter"),
        message("of-of-gone", "of-gone", "i", rank=0),
        message("orphan", "nowhere", "j", rank=0),
        message("q", None, "again", role="prompter"),
        message("loop1", "loop2", "k", role="prompter"),
        message("loop2", "loop1", "l", rank=0),
        message("single", None, "m", role="prompter"),
        message("bad", "q", None, rank=4),
        message("odd", "q", "n", rank=5, role="moderator"),
        message(["x"], "q", "o", rank=6),
    ]
    first, second = [U], [U, A, user("p")]
    assert read("oasst_messages", *rows) == [
        [],
        [],
        [(second, [assistant("d")], [assistant("e")])],
        [(first, [A], [assistant("c")]), (first, [A], [B]), (first, [B], [assistant("c")])],
        [],
        [],
        [],
        ["no_rival"],
        ["deleted"],
        ["parent_missing"],
        ["parent_missing"],
        ["parent_missing"],
        ["duplicate"],
        ["parent_missing"],
        ["parent_missing"],
        ["no_rival"],
        ["not_text"],
        ["unknown_role"],
        ["not_text"],
    ]
    assert find_layout(SOURCE, rows, PREFERENCE_LAYOUTS)[0] == "oasst_messages"


def test_ranks_have_differences_but_no_ratio():
    rows = [
        message("q", None, "q", role="prompter"),
        *(message(f"a{i}", "q", text, rank=i) for i, text in enumerate("abc")),
    ]
    far = [([U], [A], [assistant("c")])]
    assert read("oasst_messages", *rows, min_score_difference=2) == [[*far, "too_close", "too_close"], [], [], []]
    assert read("oasst_messages", *rows, max_pairs_per_prompt=1) == [
        [*far, "over_max_pairs", "over_max_pairs"],
        [],
        [],
        [],
    ]
    with pytest.raises(UserError, match=r"a score is negative .* use min_score_difference"):
        read("oasst_messages", *rows, min_score_ratio=2)


def test_languages_filter_rows():
    german = [message("f", None, "frage", role="prompter", lang="de"), message("g", "f", "gut", rank=0, lang="de")]
    assert read("oasst_messages", *german, languages=["en"]) == [["other_language"]] * 2
    assert read("oasst_trees", TREE, languages=["de", "fr"]) == [["other_language"]]
    assert len(read("oasst_trees", TREE, languages=["en"])[0]) == 4
    assert read("chatbot_arena", ARENA | {"winner": "model_a"}, languages=["German"]) == [["other_language"]]
    with pytest.raises(UserError, match=r"languages is set, but no row has .* `columns: {lang: <column>}`"):
        check_columns(Source(path="x", languages=["en"]), [{"prompt": "q", "chosen": "a", "rejected": "b"}])


def test_pairs_with_close_scores_are_dropped():
    pair = [([user("How do I seed raspberries?")], [assistant("Use a sieve.")], [assistant("Do not.")])]
    assert read("shp", SHP, min_score_ratio=2) == [pair]
    assert read("shp", SHP, min_score_ratio=2.1) == [["too_close"]]
    assert read("shp", SHP, min_score_difference=174) == [pair]
    assert read("shp", SHP, min_score_difference=175) == [["too_close"]]
    assert [isinstance(item, str) for item in read("ultrafeedback", ULTRA, min_score_difference=1.5)[0]] == [
        False
    ] * 3 + [True] * 2
    with pytest.raises(UserError, match="min_score_ratio is set, but the rows have no scores: remove the setting"):
        read("explicit", {"prompt": "q", "chosen": "a", "rejected": "b"}, min_score_ratio=2)


def test_pairs_per_prompt_are_limited():
    rows = [SHP | {"human_ref_A": f"answer {i}"} for i in range(3)] + [SHP | {"history": "another post"}]
    found = read("shp", *rows, max_pairs_per_prompt=2)
    assert [items[0] if isinstance(items[0], str) else "pair" for items in found] == [
        "pair",
        "pair",
        "over_max_pairs",
        "pair",
    ]
    (found,) = read("ultrafeedback", ULTRA, max_pairs_per_prompt=1)
    assert found == [([U], [assistant("best")], [assistant("worst")]), *["over_max_pairs"] * 4]


def test_tools_of_any_form_become_json_with_the_order_of_their_keys():
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}
    filled = {**tool, "function": {"name": "weather", "parameters": {"city": {"type": "string", "enum": None}}}}
    for tools in ([tool], json.dumps([tool]), [filled]):
        assert as_tools({"tools": tools}) == json.dumps([tool])
    for none in ({}, {"tools": None}, {"tools": []}, {"tools": " "}, {"tools": "[]"}):
        assert as_tools(none) is None
    for bad in ("{", 3, ["weather"], {"name": "x"}, [{"x": b"y"}], [{"x": float("nan")}], [{"x": "\ud800"}]):
        with pytest.raises(Unusable, match="bad_tools"):
            as_tools({"tools": bad})


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_layout_is_a_module_with_samples(name):
    """`docs/architecture.md` describes how to add one: a file with these names, and a case here."""
    layout = LAYOUTS[name]
    assert layout.__doc__
    assert layout.COLUMNS or name == "kto"
    assert hasattr(layout, "parse") != hasattr(layout, "group")
    assert name in ("oasst_messages", "kto") or any(
        case[0] == name and not isinstance(case[2], str) for case in PAIRS + EXAMPLES
    )


NAMES = sorted(COLUMNS | {"deleted", "winner", "annotator2", "prediction 2", "m1"})
MESSAGE = st.sampled_from(
    [U, A, system("s"), {"role": "tool", "content": "q"}, {"role": "user"}, {}, SG_U, SG_A, node("a", rank=0)]
)
SCALAR = st.sampled_from(
    [None, float("nan"), float("inf"), 0, 1, 2, True, b"x", "", " ", "q", "q a", "\n\nHuman: q\n\nAssistant: a", "\ud800",
     "😀", "a\r\nb", "model_a", "tie", 10**400, {"is_correct": True, "solution": "a"}, TREE["prompt"], {"response": "x"}]
)  # fmt: skip
VALUE = SCALAR | st.lists(SCALAR | MESSAGE | st.lists(SCALAR, max_size=2), max_size=4)
ROW = st.none() | st.dictionaries(st.sampled_from(NAMES), VALUE)


def dirty(sample):
    """Return a valid row with arbitrary values in some columns."""
    return st.dictionaries(st.sampled_from(sorted(sample)), VALUE, max_size=3).map(lambda changes: sample | changes)


SAMPLES = {layout: row for layout, row, expected in PAIRS + EXAMPLES if not isinstance(expected, str)}
SAMPLES["oasst_messages"] = message("q", None, "q")
JUDGED = {"kto", *(name for name, layout in LAYOUTS.items() if getattr(layout, "JUDGED", None))}
SAMPLES["kto"] = {"prompt": "q", "completion": "a", "label": True}


@pytest.mark.fuzz
@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(sorted(LAYOUTS)))
def test_any_row_gives_pairs_or_a_reason(data, layout):
    """Each row gives usable pairs or a known reason, exactly once. `read` checks the pairs."""
    rows = data.draw(st.lists(ROW | dirty(SAMPLES[layout]), max_size=6))
    limits = data.draw(st.sampled_from([{}, {"max_pairs_per_prompt": 1}]))
    try:
        found = read(layout, *rows, **limits)
    except UserError:  # no prompt has both verdicts
        assert layout == "kto"
        return
    for items in found:
        assert items or layout in ("oasst_messages", "kto")
        assert all(isinstance(item, tuple) or item in REASONS for item in items)


@pytest.mark.fuzz
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(sorted(PREFERENCE_LAYOUTS)))
def test_rows_of_mixed_layouts_are_kept_or_counted(tmp_path, data, layout):
    """Rows of a layout mixed with rows of other layouts and junk: each gives pairs or a reason."""
    others = st.sampled_from(sorted(SAMPLES)).map(SAMPLES.__getitem__)
    rows = data.draw(st.lists(dirty(SAMPLES[layout]) | others | st.sampled_from(["not json", [], 3]), max_size=12))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, default=repr) + "\n" for row in [SAMPLES[layout], *rows]))
    for split in (
        "train",
        "test",
    ):  # so that there is something to train on and to judge by, whatever becomes of the rows
        good = {"prompt": f"a question of {split}", "chosen": "a", "rejected": "b"}
        (tmp_path / f"good-{split}.jsonl").write_text(json.dumps(good) + "\n")
    sources = [Source(path=f"{tmp_path}/good*.jsonl"), Source(path=str(path), format=layout)]
    data_section = DataSection(
        sources=sources, max_drop_share=1, test_size=0, validation_size=0, checks={"unread_content": "drop"}
    )
    if layout in JUDGED:  # labels without a clear meaning stop the run
        with suppress(UserError):
            load_preferences(data_section)
        return
    _, report = load_preferences(data_section)
    assert report.n_rows == 2 + 1 + len(rows)
    assert report.n_read == report.n_kept + report.n_dropped == report.n_kept + sum(report.dropped.values())
