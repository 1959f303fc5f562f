"""Messages with thoughts, tool calls and tool results: how they are read, stored and passed to templates."""

import pyarrow as pa
import pytest
from support.data_files import write_rows
from support.messages import as_messages

from posttrain.config import DataSection
from posttrain.data.checks import Unusable, check_row
from posttrain.data.formats.turns import as_turns
from posttrain.data.loader import load_preferences
from posttrain.data.rows import Turn
from posttrain.data.splits import prompt_key
from posttrain.data.spool import TURNS, lean_rows
from posttrain.data.stored import PAIR_SCHEMA, Preferences

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "at": "noon"}}}
CALL_JSON = (
    '[{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "at": "noon"}}}]'
)
USER: Turn = {"role": "user", "content": "q"}
CALLING: Turn = {"role": "assistant", "content": "", "tool_calls": CALL_JSON}
RESULT: Turn = {"role": "tool", "content": "rain", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"role": "developer", "content": "be kind"}, {"role": "system", "content": "be kind"}),
        ({"role": "model", "content": "a"}, {"role": "assistant", "content": "a"}),
        ({"from": "human", "value": "q"}, USER),
        ({"role": None, "content": None, "from": "gpt", "value": "a"}, {"role": "assistant", "content": "a"}),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "t"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"},
        ),
        (
            {"role": "assistant", "content": "a", "thinking": "t"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": None, "tool_calls": []},
            {"role": "assistant", "content": "a"},
        ),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, CALLING),
        ({"role": "assistant", "content": None, "tool_calls": CALL_JSON}, CALLING),
        ({"from": "function_call", "value": CALL_JSON}, CALLING),
        ({"role": "tool", "content": "rain", "tool_call_id": "c1"}, RESULT),
        (
            {"role": "function", "name": "weather", "content": "rain"},
            {"role": "tool", "content": "rain", "name": "weather"},
        ),
        ({"from": "observation", "value": "rain"}, {"role": "tool", "content": "rain"}),
        ({"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "a", "weight": 0.0}),
        ({"role": "assistant", "content": "a", "train": False}, {"role": "assistant", "content": "a", "weight": 0.0}),
        ({"role": "assistant", "content": "a", "weight": 1, "train": True}, {"role": "assistant", "content": "a"}),
    ],
)
def test_messages_are_read_with_all_their_keys(message, turn):
    assert as_turns([message], "user") == [turn]
    assert as_turns(message, "user") == [turn]


def test_null_keys_that_arrow_adds_to_tool_calls_are_removed():
    function = {"name": "weather", "parameters": None, "arguments": {"city": "Oslo", "at": "noon"}}
    filled = {**CALL, "index": None, "function": function}
    assert as_turns([{"role": "assistant", "content": None, "tool_calls": [filled]}], "user") == [CALLING]


def test_results_of_tools_follow_calls_and_are_part_of_the_prompt():
    answer: list[Turn] = [{"role": "assistant", "content": "It rains"}]
    check_row([USER, CALLING, RESULT, RESULT], [answer, [{"role": "assistant", "content": "Sun"}]], 200)
    wrong: list[list[Turn]] = [[RESULT], [USER, RESULT], [USER, USER], [USER, CALLING, CALLING]]
    for prompt in wrong:
        with pytest.raises(Unusable, match="turn_order"):
            check_row(prompt, [answer], 1000)
    with pytest.raises(Unusable, match="overlong"):
        check_row([USER, CALLING, RESULT], [answer], 100)  # the call has more than 100 characters


def test_prompts_that_differ_in_their_tool_calls_are_different_prompts():
    other: Turn = {**CALLING, "tool_calls": CALL_JSON.replace("Oslo", "Rome")}
    assert prompt_key([USER, CALLING, RESULT]) != prompt_key([USER, other, RESULT])


def test_templates_get_messages_without_unused_keys_and_with_parsed_calls():
    stored: Turn = {"reasoning_content": None, "name": None, "tool_call_id": None, **CALLING, "weight": 0.0}
    assert as_messages([stored, USER]) == [{"role": "assistant", "content": "", "tool_calls": [CALL]}, USER]


def test_rows_of_a_slice_are_lean():
    turns = [[USER], [USER, CALLING], [USER]]
    table = pa.table({"i": [0, 1, 2], "prompt": pa.array(turns, TURNS)})
    assert lean_rows(table) == [{"i": i, "prompt": turn} for i, turn in enumerate(turns)]
    assert lean_rows(table.slice(2)) == [{"i": 2, "prompt": [USER]}]
    assert lean_rows(table.to_batches()[0].slice(1)) == [{"i": i, "prompt": turns[i]} for i in (1, 2)]


def test_a_conversation_with_tools_survives_loading_and_saving(tmp_path):
    rows = [
        {
            "chosen": [
                {"role": "user", "content": f"Weather {i}?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "rain", "tool_call_id": "c1"},
                {"role": "assistant", "content": "It rains", "reasoning_content": "hm"},
            ],
        }
        for i in range(40)
    ]
    for row in rows:
        row["rejected"] = [*row["chosen"][:3], {"role": "assistant", "content": "Sun"}]
    write_rows(tmp_path / "pairs.jsonl", rows)
    preferences, report = load_preferences(
        DataSection(
            sources=[{"path": str(tmp_path / "pairs.jsonl")}],
            test_size=0.2,
            checks={"near_duplicate": "keep", "near_test": "keep", "near_validation": "keep"},
        )
    )
    assert (report.n_kept, report.n_dropped) == (40, 0)
    preferences.save(tmp_path)
    loaded = Preferences.load(tmp_path)
    assert loaded.digest == preferences.digest
    assert loaded.train.with_format("arrow")[:].schema.equals(PAIR_SCHEMA)
    row = loaded.train[0]
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "tool"]
    assert as_messages(row["prompt"])[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    assert as_messages(row["chosen"]) == [{"role": "assistant", "content": "It rains", "reasoning_content": "hm"}]
