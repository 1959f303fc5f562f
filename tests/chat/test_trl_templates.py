"""The chat templates that ship with TRL, over twelve conversations: the tokens are those of `apply_chat_template`."""

import pytest

from docs.chat_templates import CONVERSATIONS, MEANINGS, PAGE, outcome, prepared, template_names

LINES = {line.split(" | ")[0].removeprefix("| "): line for line in PAGE.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("name", template_names())
def test_conversations_have_the_tokens_that_the_page_says(name):
    chat = prepared(name)
    cells = [outcome(chat, conversation) for conversation in CONVERSATIONS]
    assert LINES[name].removesuffix(" |").split(" | ")[2:] == cells
    assert set(cells) <= set(MEANINGS)
    assert cells[0] in "=o"  # a question and an answer work under every template
