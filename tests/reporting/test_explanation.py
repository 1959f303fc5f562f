"""What changed in a run, in lines that fit a terminal."""

from posttrain.reporting.past_runs.explanation import Explanation, RowChanges, StepReason, explanation_lines

STEPS = [
    StepReason("train_sft", "cached", ["the result of night-1"]),
    StepReason("train_dpo", "ran", ["dpo.beta 0.1 -> 0.3", "code of posttrain.training.dpo"]),
]


def test_everything_that_changed_is_named():
    found = Explanation(
        "night-2", "feedback", "refused, 3 min 20 s", "night-1", STEPS,
        settings={"dpo.beta": ("0.1", "0.3")},
        rows=RowChanges({"a/b": [f"id{i}" for i in range(7)]}, {"c/d": ["x1"]}, moved=2),
        files=["s3://bucket/day-2.jsonl is new"],
        packages={"torch": ("2.12.0", "2.13.0")},
        code=["posttrain.training.dpo"],
    )  # fmt: skip
    assert list(explanation_lines(found, 120)) == [
        "Run night-2: refused, 3 min 20 s",
        "Compared with the run of model feedback before it: night-1",
        "",
        "rows      +7 added, a/b: id0 id1 id2 id3 id4 and 2 more (--ids shows all)",
        "rows      -1 removed, c/d: x1",
        "rows      2 rows are in another split",
        "settings  dpo.beta: 0.1 -> 0.3",
        "packages  torch: 2.12.0 -> 2.13.0",
        "files     s3://bucket/day-2.jsonl is new",
        "code      posttrain.training.dpo",
        "",
        "train_sft  cached   the result of night-1",
        "train_dpo  ran      dpo.beta 0.1 -> 0.3; code of posttrain.training.dpo",
    ]
    assert "id0 id1 id2 id3 id4 id5 id6" in "\n".join(explanation_lines(found, 120, all_ids=True))
    assert max(map(len, explanation_lines(found, 60))) <= 60


def test_a_first_run_is_compared_with_nothing():
    lines = list(explanation_lines(Explanation("run-1", "demo", "promoted, 2 min 1 s", None, STEPS), 120))
    assert lines[1] == "It is the first run of model demo, so there is none to compare it with."
    assert lines[2] == ""
    assert lines[3].startswith("train_sft")


def test_an_unchanged_run_says_so():
    lines = list(explanation_lines(Explanation("run-2", "demo", "unchanged, 9 s", "run-1", STEPS), 120))
    assert lines[3] == "Nothing changed: neither rows nor settings, files, packages or code."
