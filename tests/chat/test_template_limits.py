"""A chat template that fails in any way, or does not come to an end, is one line."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from posttrain.chat import renderer as _renderer
from posttrain.chat.time_limit import TimeLimitExceeded, time_limit
from posttrain.compat.chat_templates import compile_template
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.base import resolve_base
from posttrain.models.loading import load_chat

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 / 0 }}", r"fails on a plain question and answer \(division by zero\)"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"\(maximum recursion depth exceeded"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", r"\(Range too big"),
        ("{{ 'a' * 10 ** 10 }}", r"\(a text or list of 10000000000 parts is too long\)"),
        ("{{ 9 ** (9 ** 9) }}", r"\(9 \*\* 387420489 is too large\)"),
        ("{{ messages[9].content }}", r"\(list object has no element 9\)"),
        ("{{ 1 + 'a' }}", r"\(unsupported operand"),
        ("{% for %}", r"is not a valid Jinja template"),
        (ENDLESS, r"rendering one conversation takes more than 0\.5 seconds"),
    ],
)
def test_a_template_that_fails_is_one_line(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, template: str, message: str
) -> None:
    monkeypatch.setattr(_renderer, "SECONDS", 0.5)
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(template)
    section = ModelSection(base=str(folder), precision="fp32")
    with pytest.raises(UserError, match=message):
        load_chat(resolve_base(section), section)


def test_ordinary_products_are_computed() -> None:
    assert compile_template("{{ '=' * 3 }}{{ 4 * 2.5 }}{{ 2 ** 10 }}").render() == "===10.01024"


def test_a_limit_ends_code_in_its_own_thread_and_nothing_after_it() -> None:
    def run_for_ever() -> None:
        with time_limit(0.1):
            while True:
                pass

    for _ in range(2):
        with pytest.raises(TimeLimitExceeded):
            run_for_ever()
    with time_limit(0.1):
        pass
    end, n_done = time.monotonic() + 0.6, []
    other = threading.Thread(target=lambda: n_done.append(sum(range(10**6))))
    other.start()
    while time.monotonic() < end:  # an exception that came late would end this loop
        pass
    other.join()
    assert n_done
