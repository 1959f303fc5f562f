"""Each layout gives the turns that a reader of the row would give, or the reason why there are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config import Source
from posttrain.data.checks import REASONS, Unusable, check_row
from posttrain.data.formats import INSTRUCTION_LAYOUTS, PREFERENCE_LAYOUTS, check_columns, find_layout, rename
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


def outcome(layout, row):
    """What the layout makes of a row, checked: the parts, or the reason."""
    try:
        parsed = LAYOUTS[layout].parse(row)
        check_row(parsed.prompt, list(parsed[1:]), max_chars=100)
    except Unusable as unusable:
        return unusable.reason
    return tuple(parsed)


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
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": "\ud83d"}, "not_text"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": " \n"}, "empty"),
    ("explicit", {"prompt": "", "chosen": "a", "rejected": "b"}, "empty"),
    ("explicit", {"prompt": [], "chosen": "a", "rejected": "b"}, "empty"),
    ("explicit", {"prompt": "q" * 101, "chosen": "a", "rejected": "b"}, "overlong"),
    ("explicit", {"prompt": "q", "chosen": "a", "rejected": "b" * 100}, ([U], [A], [assistant("b" * 100)])),
    ("explicit", {"prompt": [U, A], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [A, U], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [U, system("s")], "chosen": "a", "rejected": "b"}, "turn_order"),
    ("explicit", {"prompt": [{"role": "tool", "content": "q"}], "chosen": "a", "rejected": "b"}, "unknown_role"),
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
]


@pytest.mark.parametrize(("layout", "row", "expected"), PAIRS + EXAMPLES)
def test_a_row_becomes_turns_or_a_reason(layout, row, expected):
    assert outcome(layout, row) == expected


def test_each_layout_recognises_the_rows_it_can_read():
    for cases, layouts in ((PAIRS, PREFERENCE_LAYOUTS), (EXAMPLES, INSTRUCTION_LAYOUTS)):
        for layout, row, expected in cases:
            if isinstance(expected, tuple) and not (layout == "explicit" and isinstance(row["chosen"], list)):
                assert find_layout(Source(path="x"), [row], layouts)[0] == layout, row


def test_a_dirty_first_row_does_not_hide_the_layout():
    rows = [{"chosen": None, "rejected": 3}, {"chosen": [U, A], "rejected": [U, B]}]
    assert find_layout(Source(path="x"), rows, PREFERENCE_LAYOUTS)[0] == "conversational"


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"question": "q", "good": "a", "bad": "b"}, {},
         "x: its columns (bad, good, question) fit no layout; the nearest, explicit, also needs prompt, chosen, "
         "rejected. If they are called otherwise, say so with "
         "`columns: {prompt: <column>, chosen: <column>, rejected: <column>}`"),
        ({"prompt": "q", "chosen": "a"}, {}, "the nearest, explicit, also needs rejected."),
        ({"question": "q", "chosen": "a", "rejected": "b"}, {}, "the nearest, explicit, also needs prompt."),
        ({"prompt;chosen;rejected": "q;a;b"}, {}, "its columns (prompt;chosen;rejected) fit no layout"),
        ({"chosen": "a", "rejected": "b"}, {"format": "explicit"}, "not those of explicit, which also needs prompt."),
        ({"chosen": "a", "rejected": "b"}, {"format": "alpaca"}, "alpaca is not possible here: must be auto, hh_rlhf,"),
    ],
)  # fmt: skip
def test_an_unknown_layout_is_answered_with_the_nearest_and_the_remedy(row, settings, words):
    with pytest.raises(UserError) as error:
        find_layout(Source(path="x", **settings), [row], PREFERENCE_LAYOUTS)
    assert words in str(error.value)


def test_columns_can_be_called_otherwise():
    row = {"question": "q", "prompt": "not this", "answer": "a", "n": 1}
    columns = {"prompt": "question", "completion": "answer"}
    assert rename(row, columns) == {"prompt": "q", "completion": "a", "n": 1}
    check_columns(Source(path="x", columns=columns), [row])
    with pytest.raises(UserError, match=r"prompt: there is no column 'questoin' \(did you mean 'question'\?\)"):
        check_columns(Source(path="x", columns={"prompt": "questoin"}), [row])


NAMES = sorted({name for layout in LAYOUTS.values() for name in layout.COLUMNS} | {"input"})
MESSAGE = st.sampled_from([U, A, system("s"), {"role": "tool", "content": "q"}, {"role": "user"}, {}])
SCALAR = st.sampled_from([None, float("nan"), 1, b"x", "", " ", "q", "q a", "\n\nHuman: q\n\nAssistant: a", "\ud800"])


@given(
    st.dictionaries(st.sampled_from(NAMES), SCALAR | st.lists(SCALAR | MESSAGE, max_size=4)),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_no_row_breaks_a_layout(row, layout):
    found = outcome(layout, row)
    assert isinstance(found, tuple) or found in REASONS
