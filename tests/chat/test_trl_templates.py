"""The chat templates that ship with TRL, over twelve conversations: the tokens are those of `apply_chat_template`."""

import itertools
from operator import itemgetter

import pytest
from datasets import Dataset

from docs.chat_templates import (
    CONVERSATIONS,
    MEANINGS,
    PAGE,
    SPECIAL,
    outcome,
    plain_message,
    prepared,
    template_names,
    trl_template,
)
from posttrain.chat.findings import Findings
from posttrain.chat.tokenise import EncodedCompletion, completions, encode_rows

LINES = {line.split(" | ")[0].removeprefix("| "): line for line in PAGE.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("name", template_names())
def test_conversations_have_the_tokens_that_the_page_says(name):
    chat = prepared(name)
    cells = [outcome(chat, conversation) for conversation in CONVERSATIONS]
    assert LINES[name].removesuffix(" |").split(" | ")[2:] == cells
    assert set(cells) <= set(MEANINGS)
    assert cells[0] in "=o"  # a question and an answer work under every template


MARKED = [name for name in template_names() if "generation" in trl_template(name) and name.endswith("_training")]


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("conversation", ["question", "turns", "white space"])
def test_tokens_under_the_loss_are_those_of_trls_marks(name, conversation):
    """TRL marks answers with `{% generation %}`. Its marks may also hold the head of the answer, which the generation prompt
    writes, and what follows the stop token."""
    chat = prepared(name)
    prompt, answer, _ = CONVERSATIONS[conversation]
    turns = [*prompt, answer]
    (row,) = encode_rows(
        chat, Dataset.from_list([{"id": "a", "prompt": prompt, "completion": [answer]}]), ("completion",), Findings()
    )
    messages = [plain_message(chat, turn) for turn in turns]
    marked = chat.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    spans = [
        [token for token, _ in tokens]
        for is_answer, tokens in itertools.groupby(
            zip(marked["input_ids"], marked["assistant_masks"], strict=True), itemgetter(1)
        )
        if is_answer
    ]
    trained = [ids for one in completions(chat, row, loss_on_all=True) for ids in _under_loss(one)]
    assert len(spans) == len(trained) == sum(turn["role"] == "assistant" for turn in turns)
    decode = chat.tokenizer.decode
    for marks, ids in zip(map(decode, spans), trained, strict=True):
        text = decode(ids[:-1])  # without the stop token
        if chat.renderer.opens_thought:
            text = text.partition("</think>")[2].lstrip()
        head, found, tail = marks.partition(text)
        assert found, (marks, text)
        assert chat.renderer.opens_thought or decode(row.prompt_ids).endswith(head)
        assert SPECIAL.sub("", tail).strip() == ""


def _under_loss(one: EncodedCompletion) -> list[list[int]]:
    ids = one.prompt_ids + one.completion_ids
    return [*(ids[start:end] for start, end in one.earlier), one.completion_ids]
