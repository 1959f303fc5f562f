"""The benchmark itself: it counts correctly, refuses an engine that trains differently, and the docs show its results."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks import bench, cases, levers
from benchmarks.cases import ENGINES, Case
from benchmarks.gate import HeadRows
from benchmarks.table import BEGIN, END, PAGE, draw, read_results, table

LN_2 = math.log(2)


@pytest.fixture(scope="module")
def tiny_cache(tmp_path_factory):
    """A cache of its own for the case's files."""
    patch = pytest.MonkeyPatch()
    patch.setattr(bench, "CACHE", tmp_path_factory.mktemp("bench"))
    yield
    patch.undo()


def row(losses, **other):
    return {"losses": losses, "n_steps": len(losses), "dtype": "fp32", "n_train": 8, "n_test": 4, **other}


def test_losses_that_differ_do_not_count():
    standard = row([LN_2, 0.68, 0.66])
    assert bench.compare(row([LN_2, 0.6801, 0.66]), standard)["parity"]
    late = bench.compare(row([LN_2, 0.68, 0.67]), standard)
    assert not late["parity"]
    assert late["max_deviation"] == pytest.approx(0.01 / 0.66)
    assert bench.compare(row([LN_2, 0.68, 0.67], dtype="bf16"), standard)["parity"]  # three digits
    assert not bench.compare(row([0.70, 0.68, 0.66]), row([0.70, 0.68, 0.66]))["parity"]  # no start at the reference
    assert not bench.compare(row([LN_2, 0.68]), standard)["parity"]
    assert not bench.compare(row([LN_2, 0.68, 0.66], n_train=7), standard)["parity"]  # a pair was dropped
    assert not bench.compare(row([LN_2, math.nan, 0.66]), standard)["parity"]


def test_a_speedup_is_the_median_of_the_rounds():
    assert bench.ratio([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 2.0  # 2, 3, 1


def test_rows_through_the_head_are_counted_and_no_others():
    hidden, vocabulary = torch.randn(5, 8, requires_grad=True), torch.randn(32, 8, requires_grad=True)
    with HeadRows(hidden_size=8, vocab_size=32) as head:
        (hidden @ torch.randn(8, 8)) @ vocabulary.T
        torch.nn.functional.linear(hidden, vocabulary).sum().backward()
    assert head.rows == 10


@pytest.mark.soak
def test_ours_trains_as_trl_does_and_computes_less(tiny_cache, capsys):
    """One timed step of each on synthetic pairs, each in a process of its own."""
    case = Case("short", "tiny", "lora", batch_size=2, n_steps=2, n_test=2, max_length=128, learning_rate=0.05)
    standard, ours = bench.run_group(case, [ENGINES["trl_default"], replace(ENGINES["ours"], options={})])
    assert standard["parity"]
    assert ours["parity"]
    assert ours["losses"][1] != pytest.approx(
        LN_2, rel=1e-3
    )  # the step before moved the weights: agreeing means something
    assert "losses agree" in capsys.readouterr().out
    assert {"profile", "model", "engine", "dtype", "pairs_per_s", "wall_s", "peak_rss_gib", "versions"} <= set(ours)
    assert ours["backbone_tokens"] < standard["backbone_tokens"]
    assert ours["head_rows"] < standard["head_rows"]
    wrong = ours | bench.compare({**ours, "losses": [LN_2, ours["losses"][1] * 1.01]}, standard)
    draw({"tiny": [standard, wrong]}, bench.CACHE / "bars.svg")
    picture = (bench.CACHE / "bars.svg").read_text(encoding="utf-8")
    assert picture.count("does not count") == 1
    shown = table({"tiny": [standard, wrong]})
    assert "### Pairs: short" in shown
    assert "| tiny, lora, fp32 | this project |" in shown
    assert "does not count" in shown


def test_a_missing_peer_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "PEER", tmp_path / "none")
    assert [engine.name for engine in bench.available(("ours", "llamafactory"), "bf16")] == ["ours"]
    assert "make bench-peer" in capsys.readouterr().out


def test_the_documentation_shows_the_results():
    """`make bench-table` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    block = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]
    assert block.strip() == table(read_results()).strip()


def test_every_result_says_where_it_is_from():
    needed = {
        "profile",
        "model",
        "engine",
        "dtype",
        "pairs_per_s",
        "wall_s",
        "peak_rss_gib",
        "backbone_tokens",
        "head_rows",
    }
    results = read_results()
    assert results
    for name, rows in results.items():
        assert rows, name
        for one in rows:
            assert needed | {"parity", "machine", "date", "versions", "commit"} <= set(one), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_ladder_begins_with_the_baseline_and_ends_with_ours(dtype):
    first, *_, last = cases.ladder(dtype)
    assert first.options == ENGINES[cases.BASELINE].options
    assert last == replace(ENGINES["ours"], name=last.name, dtype=dtype)


def test_every_case_has_a_name_of_its_own():
    """It names the case's files."""
    names = [case.name for case in cases.FULL]
    assert names
    assert len(set(names)) == len(names)


def test_every_lever_of_the_ladder_replaces_what_is_there(monkeypatch):
    """A place that has been renamed would leave its rung as it is."""
    replaced = []
    monkeypatch.setattr(levers, "_replace", lambda module, name, _: replaced.append(getattr(module, name)))
    for engine in cases.ladder("bf16"):
        levers.pull(engine.levers)
    assert len(set(replaced)) == 5
