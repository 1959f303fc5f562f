"""Two runs compared."""

from rich.console import Console
from support.run_reports import make_pairs, make_report

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
