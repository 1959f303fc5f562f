"""Two runs compared."""

import pyarrow as pa
import pytest
from rich.console import Console
from support.run_reports import make_pairs, make_report

from posttrain.data.profile import SourceFigures
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
    found = compare_runs(run("a", gain=0.0), run("b", gain=8.0)).flips.contest
    assert found.n_gained > 10
    assert found.n_lost == 0
    assert found.gain.value == found.n_gained / 60
    back = compare_runs(run("b", gain=8.0), run("a", gain=0.0)).flips.contest
    assert back.n_lost == found.n_gained


def printed(found) -> str:
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    print_difference(found, console)
    return console.export_text()


def test_runs_without_a_common_pair_are_not_compared():
    report, pairs = run("b")
    others = pairs.set_column(0, "id", [[f"other-{i}" for i in range(len(pairs))]])
    found = compare_runs(run("a"), (report, others))
    assert found.flips.contest is None
    assert "No test pair is in both runs" in printed(found)


def test_runs_with_other_data_are_compared_on_the_pairs_of_both():
    """The second run lacks pairs 0 to 9 and has ten new ones, all ranked correctly; of the 50 others it gains two and loses one."""
    first, pairs = run("a")
    right = {name: [0.0 if "_chosen" in name else -1.0] * 60 for name in pairs.column_names if name.endswith("_logps")}
    wrong = {3: "lost", 21: "gained", 40: "gained", 41: "lost"}  # pair 3 is not in the second run
    old_chosen = [-2.0 if wrong.get(i) == "gained" else 0.0 for i in range(60)]
    new_chosen = [-2.0 if wrong.get(i) == "lost" else 0.0 for i in range(10, 70)]
    ids = [f"pair-{i}" for i in range(10, 70)]
    old = pa.table({**{name: pairs[name] for name in pairs.column_names}, **right, "dpo_chosen_logps": old_chosen})
    new = pa.table({**{name: old[name] for name in old.column_names}, "dpo_chosen_logps": new_chosen, "id": ids,
                    "conversation": ids, "source": ["grown" if i >= 50 else "there/two" for i in range(60)]})  # fmt: skip
    found = compare_runs((first, old), (first, new))
    flips = found.flips
    assert (flips.contest.gain.n_pairs, flips.contest.n_gained, flips.contest.n_lost) == (50, 2, 1)
    assert flips.contest.gain.value == pytest.approx(1 / 50)
    assert (flips.first_only.value, flips.second_only.value) == (1.0, 1.0)
    by_source = {name: (f.n_shared, f.n_gained, f.n_lost, f.n_first, f.n_second) for name, f in flips.by_source.items()}
    assert by_source == {"grown": (0, 0, 0, 0, 10), "here/one": (0, 0, 0, 5, 0), "there/two": (50, 2, 1, 5, 0)}
    assert flips.gained == ["pair-21 some text", "pair-40 some text"]
    assert flips.lost == ["pair-41 some text"]
    text = printed(found)
    assert "on the 50 test pairs of both runs: +2.0 (" in text
    assert "Accuracy of the second model on the pairs that only a has, in %: 100 (" in text
    assert "Lost: pair-41 some text" in text


def test_the_growth_of_each_source_is_shown():
    first, pairs = run("a")
    grown = {name: SourceFigures(n_rows=n, longer_is_chosen=None, n_annotated=0, agreement=None, languages={})
             for name, n in (("here/one", 130), ("there/two", 30))}  # fmt: skip
    data = first.data.model_copy(update={"figures": first.data.figures.model_copy(update={"by_source": grown})})
    found = compare_runs((first, pairs), (first.model_copy(update={"data": data}), pairs))
    assert found.flips.by_source["here/one"].rows == (0, 130)
    assert "130 (+130)" in printed(found)


def test_it_prints_settings_figures_and_the_contest(capsys):
    print_difference(compare_runs(run("run-a", 0.0, seed=1), run("run-b", 8.0, seed=2)), Console(width=140))
    printed = capsys.readouterr().out
    for part in (
        "run-a",
        "run-b",
        "seed",
        "preference accuracy",
        "over the first, on the 60 test pairs of both runs: +",
    ):
        assert part in printed
