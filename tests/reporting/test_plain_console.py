"""Names and texts that look like markup or control a terminal are printed as text."""

import io

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from posttrain.reporting.plain_console import PlainConsole

CLIPBOARD, TITLE = "\x1b]52;c;aGlkZGVu\x07", "\x1b]0;title\x07"


def printed(*objects: object, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=80, force_terminal=terminal)
    for printable in objects:
        console.print(printable)
    return stream.getvalue()


def test_markup_in_a_name_is_printed_and_no_error() -> None:
    table = Table(title="run x[/b]")
    table.add_column("set [i]")
    table.add_row("x[/b] (3 pairs) :smile:")
    text = printed(table, "other[/b]")
    assert all(part in text for part in ("run x[/b]", "set [i]", "x[/b] (3 pairs) :smile:", "other[/b]"))


def test_control_sequences_of_an_answer_do_not_reach_the_terminal() -> None:
    answer = f"Hello{CLIPBOARD}{TITLE}\rBye"
    for shown in (Text(answer), answer, Panel(Text(answer), title=Text(answer))):
        text = printed(shown)
        assert "Hello" in text
        assert not {"\x1b", "\x07", "\r"} & set(text)


def test_styles_stay() -> None:
    assert "\x1b[1m" in printed(Text("bold", style="bold"), terminal=True)
