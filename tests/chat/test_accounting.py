"""Every row is used or counted, whatever its texts spell and whatever the checks are set to."""

import functools

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.chat_templates import prepared
from posttrain.chat.findings import Findings
from posttrain.chat.template import Chat
from posttrain.chat.tokenise import encode_pairs, tokenise_pairs
from posttrain.config.check_policies import TOKEN_CHECKS, allowed_policies

pytestmark = pytest.mark.fuzz

PIECES = (
    "Does it rain?", "Yes.", " ", "\n", "<|im_end|>", "<|im_start|>", "<|im_start|>user\n", "<|im_start|>assistant\n", "<think>",
    "</think>", "<think>\nIt is wet.\n</think>\n\n", "</s>", "<end_of_turn>", "<start_of_turn>model\n", "雨",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).filter(str.strip)
TURNS = st.tuples(st.booleans(), TEXT).map(
    lambda drawn: [{"role": "system", "content": "Be kind."}] * drawn[0] + [{"role": "user", "content": drawn[1]}]
)
ROWS = st.lists(st.tuples(TURNS, TEXT, TEXT), min_size=1, max_size=4)
POLICIES = st.fixed_dictionaries(
    {check: st.sampled_from([p for p in allowed_policies(check) if p != "fail"]) for check in TOKEN_CHECKS}
)

chat_of = functools.cache(prepared)


@given(name=st.sampled_from(["qwen3", "gemma", "deepseekv3"]), drawn=ROWS, policies=POLICIES)
@settings(deadline=None, max_examples=40)
def test_rows_in_are_rows_out_and_counted(name: str, drawn: list, policies: dict[str, str]) -> None:
    chat, rows = chat_of(name), _rows(drawn)
    findings = Findings(policies)
    found = tokenise_pairs(chat, rows, 60, 30, findings)
    left_out = sum(found.counts[name] for name in ("no_room", "identical_after_cut"))
    assert found.rows.num_rows + left_out + findings.dropped.total() == len(rows)
    assert found.rows.num_rows == len(set(found.rows["id"]))


@given(name=st.sampled_from(["qwen3", "gemma", "deepseekv3"]), drawn=ROWS)
@settings(deadline=None, max_examples=40)
def test_no_text_of_an_answer_stops_it_early(name: str, drawn: list) -> None:
    """Under the default policies, exactly one stop token ends every answer before any cut."""
    chat: Chat = chat_of(name)
    for pair in encode_pairs(chat, _rows(drawn), Findings()):
        for ids in (pair.chosen_ids, pair.rejected_ids):
            assert ids[-1] == chat.stop_id
            assert chat.stop_id not in ids[:-1]


def _rows(drawn: list) -> Dataset:
    turn = functools.partial(dict, role="assistant")
    return Dataset.from_list(
        [
            {"id": str(i), "prompt": prompt, "chosen": [turn(content=chosen)], "rejected": [turn(content=rejected)]}
            for i, (prompt, chosen, rejected) in enumerate(drawn)
        ]
    )
