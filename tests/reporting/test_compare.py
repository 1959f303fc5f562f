"""Two runs compared, and people choosing between two answers."""

import json

import pytest
from rich.console import Console
from support.run_reports import make_pairs, make_report

from posttrain.errors import UserError
from posttrain.feedback.ab import ab_page, ab_score, digest, dpo_is_left
from posttrain.reporting.compare import compare_runs, print_difference


def run(name: str, gain: float = 2.0, **config):
    pairs = make_pairs(gain)
    return make_report(name, pairs, **config), pairs


def test_only_what_differs_is_shown():
    found = compare_runs(run("a", dpo={"beta": 0.1}), run("b", dpo={"beta": 0.5}))
    assert found.settings == {"dpo.beta": ("0.1", "0.5")}
    assert found.origins == {"data": True, "code": True, "base": True, "packages": True}
    assert found.runs == ("a", "b")
    assert found.findings == ([], [])


def test_the_newest_models_are_compared_on_the_same_pairs():
    """The second DPO has margins larger by 8 nats on every pair: it gains pairs and loses none."""
    found = compare_runs(run("a", gain=0.0), run("b", gain=8.0)).contest
    assert found.n_gained > 10
    assert found.n_lost == 0
    assert found.gain.value == found.n_gained / 60
    back = compare_runs(run("b", gain=8.0), run("a", gain=0.0)).contest
    assert back.n_lost == found.n_gained


def test_runs_with_other_pairs_are_not_compared():
    other, pairs = run("b")
    figures = other.figures.model_copy(update={"digests": {"preferences": "q"}})
    found = compare_runs(run("a"), (other.model_copy(update={"figures": figures}), pairs))
    assert found.contest is None
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    print_difference(found, console)
    assert "The test pairs are not the same" in console.export_text()


def test_it_prints_settings_figures_and_the_contest(capsys):
    print_difference(compare_runs(run("run-a", 0.0, seed=1), run("run-b", 8.0, seed=2)), Console(width=140))
    printed = capsys.readouterr().out
    for part in (
        "run-a",
        "run-b",
        "seed",
        "preference accuracy",
        "over the first, on the same pairs: +",
    ):
        assert part in printed


@pytest.fixture
def generations():
    return make_report().generations


def choices(folder, generations, name="choices.json", answers=None, **chosen):
    path = folder / name
    path.write_text(json.dumps({"answers": answers or digest(generations), "choices": chosen}))
    return path


def test_sides_are_shuffled_and_models_unnamed(generations):
    sides = [dpo_is_left(exchange.id) for exchange in generations.exchanges]
    assert 5 < sum(sides) < 25
    page = ab_page(generations)
    assert page.count("<form") == 30
    assert "dpo" not in page.lower()
    assert "sft" not in page.lower()
    for exchange, left in zip(generations.exchanges, sides, strict=True):
        form = page[page.index(f'data-id="{exchange.id}"') :].split("</form>")[0]
        assert (form.index(f"some text {exchange.id[5:]}<") < form.rindex("some text<")) == left


def test_a_hostile_answer_is_text_on_the_page():
    page = ab_page(make_report(text="</pre><script>alert(1)</script>").generations)
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page


def test_choices_are_counted_by_hand(generations, tmp_path):
    """Two for DPO, one tie, one for SFT: 2.5 of 4."""
    ids = [exchange.id for exchange in generations.exchanges[:4]]
    for_dpo = {name: "left" if dpo_is_left(name) else "right" for name in ids[:2]}
    for_sft = {ids[3]: "right" if dpo_is_left(ids[3]) else "left"}
    file = choices(tmp_path, generations, **for_dpo, **for_sft, **{ids[2]: "tie"})
    found = ab_score(generations, [file])
    assert (found.n_wins, found.n_ties, found.n_losses) == (2, 1, 1)
    assert found.share.value == 2.5 / 4
    again = ab_score(generations, [file, choices(tmp_path, generations, "two.json", **{ids[0]: "tie"})])
    assert again.share.value == (0.75 + 1 + 0.5 + 0) / 4  # a prompt with two opinions is their mean, and counts once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "contains no choices"),
        ('{"answers": "x", "choices": {"a": "middle"}}', "contains no choices"),
        ('{"answers": "x", "choices": {"a": "left"}}', "page of another run"),
    ],
)
def test_a_file_without_choices_is_an_error_in_one_line(text, message, generations, tmp_path):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=message):
        ab_score(generations, [tmp_path / "file.json"])
    with pytest.raises(UserError, match="nothing was chosen"):
        ab_score(generations, [choices(tmp_path, generations)])
