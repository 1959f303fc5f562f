"""The first rows of each source as they are trained, on a terminal and on the page."""

from datasets import Dataset
from support.chats import chat_of

from posttrain.chat.template import TEMPLATES
from posttrain.chat.trained_text import first_rows
from posttrain.data.stored import Preferences
from posttrain.reporting.trained_lines import trained_lines


def test_rows_show_their_template_and_what_is_under_the_loss():
    turns = [{"role": role, "content": text} for role, text in (("user", "A?"), ("assistant", "B."), ("user", "C?"))]
    row = {
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": "D."}],
        "rejected": [{"role": "assistant", "content": "E."}],
    }
    rows = Dataset.from_list([row | {"id": str(i), "source": "a" if i < 5 else "b"} for i in range(6)])
    found = first_rows(chat_of(TEMPLATES["plain"]), Preferences(rows, rows, rows), {}, loss_on_all=True)
    assert [one.where for one in found] == ["a, row id 0", "a, row id 1", "b, row id 5"]
    assert list(trained_lines(found[:1], 40)) == [
        "as trained, first rows of each source; ⟦under the loss⟧:",
        "  a, row id 0",
        "    prompt, 47 tokens",
        "      <s>User: A?",
        "",
        "      Assistant:⟦ B.</s>⟧",
        "",
        "      User: C?",
        "",
        "      Assistant:",
        "    chosen, 4 tokens",
        "      ⟦ D.</s>⟧",
        "    rejected, 4 tokens",
        "      ⟦ E.</s>⟧",
    ]
    assert list(trained_lines([], 40)) == []
