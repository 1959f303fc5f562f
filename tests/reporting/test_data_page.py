"""The data report as a page and on the terminal: complete, and no text of the data can run as script."""

import json
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from datasets import Dataset

from posttrain.chat.token_report import report_tokens
from posttrain.chat.tokenise import tokenise_pairs
from posttrain.cli.main import main
from posttrain.config import DataSection, Lengths, Source
from posttrain.config.check_policies import REASONS
from posttrain.data.loader import load_preferences
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.models.loading import load_chat
from posttrain.reporting.pages.data_page import ADVICE, advice, data_page, summary_lines, token_page

SCRIPT = "<script>alert(1)</script>"


class Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") or str(value).startswith("javascript:") for name, value in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """A file of 60 good pairs, and rows with two kinds of faults that contain script tags."""
    rows = [{"prompt": f"question {i}", "chosen": "yes", "rejected": "nay"} for i in range(60)]
    rows += [{"prompt": SCRIPT, "chosen": f"{SCRIPT}{i}", "rejected": " "} for i in range(12)]
    rows += [{"prompt": f"{SCRIPT}\0", "chosen": "yes", "rejected": f"no {SCRIPT}\x1b"}]
    file = tmp_path_factory.mktemp("data") / f"{SCRIPT.replace('/', '')}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def loaded(dirty):
    return load_preferences(DataSection(sources=[Source(path=str(dirty))], test_size=0.1))


def test_everything_is_on_the_page_and_nothing_runs(loaded):
    page = Reader(data_page(loaded[1], title=SCRIPT))
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    for text in (
        "73 pairs in 73 rows read, 61 kept (83.6%), 12 dropped",
        REASONS["empty"],
        "empty: 10 of 12",
        "control characters: 1 of 1",
        ADVICE["empty"],
        SCRIPT,
        loaded[1].digest,
    ):
        assert text in page.text
    assert page.tags.count("pre") == 11
    assert "\0" not in page.text


def test_the_page_is_the_same_every_time(loaded):
    assert data_page(loaded[1]) == data_page(loaded[1].model_copy())


def test_advice_is_given_for_what_was_found(loaded):
    assert [line.split(":")[0] for line in advice(loaded[1])] == ["empty (12)", "control characters (1)"]
    assert set(ADVICE) <= set(REASONS)


def test_the_terminal_shows_the_report_in_lines(loaded):
    lines = list(summary_lines(loaded[1]))
    assert lines[0] == "73 pairs in 73 rows read, 61 kept, 12 dropped"
    assert f"  dropped       12  empty: {REASONS['empty']}" in lines
    assert all("\0" not in line for line in lines)


# Tokens


def test_tokens_are_counted_as_the_stages_count_them(tiny_base, preferences):
    chat = load_chat(*tiny_base)
    report = report_tokens(chat, preferences, Lengths(max_length=24, max_prompt_length=12))
    counts = dict.fromkeys(report.cut, 0)
    lost, n_stops = dict.fromkeys(("prompt", "chosen", "rejected"), 0), dict.fromkeys(("chosen", "rejected"), 0)
    for rows in preferences.splits().values():
        used = tokenise_pairs(chat, rows, 24, 12)
        whole = {row["id"]: row for row in tokenise_pairs(chat, rows, 10_000, 10_000).rows}
        for name, n in used.counts.items():
            counts[name] += n
        for row in used.rows:
            for part in lost:
                lost[part] += len(whole[row["id"]][f"{part}_ids"]) - len(row[f"{part}_ids"])
            for part in n_stops:
                n_stops[part] += row[f"{part}_ids"][-1] != chat.stop_id
    assert report.cut == counts
    assert report.n_tokens_lost == lost
    assert report.n_stops_lost == n_stops
    assert counts["prompt_cut"] > 0
    assert counts["chosen_cut"] == n_stops["chosen"] > 0
    assert report.lengths["chosen"].n == report.n_counted == report.n_pairs == 56


def test_lengths_by_hand(tiny_base):
    """Each of the demo's words is one token, and so is each part of the template: <bos><|user|>…<|assistant|>, then …<eos>."""

    def turn(role, text):
        return [{"role": role, "content": text}]

    row = {
        "id": "1",
        "source": "s",
        "prompt": turn("user", "printer"),
        "chosen": turn("assistant", "wait wait wait"),
        "rejected": turn("assistant", "wait"),
    }
    one = Dataset.from_list([row])
    chat = load_chat(*tiny_base)
    n_printer, n_wait = (len(chat.tokenizer(text)["input_ids"]) for text in ("printer", "wait wait wait"))
    report = report_tokens(
        chat, Preferences(one, one.select([]), one.select([])), Lengths(max_length=100, max_prompt_length=50)
    )
    assert report.lengths["prompt"].max == 3 + n_printer
    assert report.lengths["chosen"].max == n_wait + 1
    assert report.longer_is_chosen.value == 1
    # bin 3 holds 4 to 7
    assert report.lengths["prompt"].counts.index(1) == (3 + n_printer).bit_length()
    assert sum(report.cut.values()) == 0
    cut = report_tokens(
        chat, Preferences(one, one.select([]), one.select([])), Lengths(max_length=3 + n_printer, max_prompt_length=50)
    )
    assert cut.cut["no_room"] == 1
    assert cut.examples == {"left_out": ["1"], "cut": []}


def test_a_cut_pair_is_an_error_if_the_config_says_so(tiny_base, preferences):
    chat = load_chat(*tiny_base)
    with pytest.raises(UserError, match=r"some of 56 pairs do not fit .* raise dpo\.max_length \(24\)"):
        report_tokens(chat, preferences, Lengths(max_length=24, max_prompt_length=12), must_fit=True)
    report_tokens(chat, preferences, Lengths(max_length=1000, max_prompt_length=500), must_fit=True)


def test_the_token_page_says_what_is_cut(tiny_base, preferences):
    report = report_tokens(load_chat(*tiny_base), preferences, Lengths(max_length=24, max_prompt_length=12))
    page = Reader(token_page(report))
    assert "of the prompts lose their beginning at dpo.max_prompt_length 12" in page.text
    assert "56 of 56 pairs were tokenised" in page.text
    assert report.template in page.text


# The command


def config_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(f"parameters: {{config: {text}}}\n")
    return str(path)


def test_posttrain_data_reports_without_training(tmp_path, dirty, tiny_folder):
    settings = {"model": {"base": str(tiny_folder)}, "data": {"sources": [{"path": str(dirty)}], "test_size": 0.1}}
    config = config_file(tmp_path, json.dumps(settings))
    done = CliRunner().invoke(main, ["data", config, "--html", str(tmp_path / "data.html")])
    assert done.exit_code == 0, done.output
    assert "73 pairs in 73 rows read, 61 kept, 12 dropped" in done.output
    assert "tokens: prompt " in done.output
    page = Reader((tmp_path / "data.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.html", "run.yaml"]


def test_posttrain_data_reports_a_mistake_in_one_line(tmp_path):
    config = config_file(
        tmp_path, json.dumps({"model": {"base": "gpt2"}, "data": {"sources": [{"path": "nowhere.jsonl"}]}})
    )
    done = CliRunner().invoke(main, ["data", config])
    assert done.exit_code == 1
    assert done.output.startswith("Error: nowhere.jsonl: no data file found")
