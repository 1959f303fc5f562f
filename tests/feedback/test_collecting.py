"""Collected pairs: which answers make a pair, what is paid for once, and which prompts are never used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError
from support.stages import sft_on
from zenml.client import Client

from pipelines.collect import collect_pipeline
from posttrain.config import CollectSection, DataSection, PairRuleSection, SftSection, Source
from posttrain.data.demo.demo_judge import compare, score
from posttrain.data.loader import load_preferences
from posttrain.data.prompt_loader import choose_by_hash, load_prompts, training_prompts
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError
from posttrain.feedback.collecting import sampled_answers
from posttrain.feedback.collecting.collected_pairs import CollectedPreferences
from posttrain.feedback.collecting.collection import CollectionPrompts, collect
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.feedback.collecting.pair_rule import ScoredAnswer, make_pairs
from posttrain.feedback.collecting.sampled_answers import AnsweringModel
from posttrain.orchestration.artifact_sources import find_stored_rows
from posttrain.reporting.pages.collected_page import collected_page
from posttrain.training.trainer import TrainingJob

ASKED: Counter[str] = Counter()


def by_length(prompt: Any, answer: str) -> float:
    """A judge that likes long answers."""
    ASKED["score"] += 1
    return float(len(answer))


def fails_on_every_prompt(prompt: Any, answer: str) -> float:
    raise RuntimeError("no answer")


def prefers_the_first(prompt: Any, first: str, second: str) -> str:
    """A judge with nothing but a position bias."""
    ASKED["compare"] += 1
    return "first"


def prefers_the_longer(prompt: Any, first: str, second: str) -> str:
    ASKED["compare"] += 1
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "judges_of_this_test", sys.modules[__name__])
    ASKED.clear()


def section(**values: Any) -> CollectSection:
    judge = {"score_function": "judges_of_this_test:by_length"}
    return CollectSection.model_validate({"judge": judge, "n_answers": 3, "max_new_tokens": 8, **values})


@pytest.mark.parametrize(
    ("rule", "pairs", "why"),
    [
        ({}, [(0, 3)], None),  # 9 against 1: the best and the worst
        ({"max_per_prompt": 2}, [(0, 3), (1, 2)], None),  # then the largest margin of those that are left: 6 - 4
        ({"max_per_prompt": 2, "min_margin": 3}, [(0, 3)], None),
        ({"min_margin": 8.5}, [], "small_margin"),
        # Lengths 4, 8, 4, 12: only 9 against 4 has the same length.
        ({"max_length_ratio": 1.4}, [(0, 2)], None),
        # 12 is 1.5 x 8: 6 against 1 has margin 5, as 9 against 4 has; the one given first comes first.
        ({"max_length_ratio": 1.5, "max_per_prompt": 2}, [(0, 2), (1, 3)], None),
    ],
)
def test_pairs_by_hand(rule, pairs, why):
    answers = [ScoredAnswer("a" * 4, 9), ScoredAnswer("b" * 8, 6), ScoredAnswer("c" * 4, 4), ScoredAnswer("d" * 12, 1)]
    assert make_pairs(answers, PairRuleSection(**rule)) == (pairs, why)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([("a", 1.0)], "few_answers"),
        ([("a", 1.0), (" a", 2.0)], "identical"),
        ([("a", 1.0), ("b", 1.0)], "equal_scores"),
    ],
)
def test_why_a_prompt_has_no_pair(answers, why):
    assert make_pairs([ScoredAnswer(*answer) for answer in answers], PairRuleSection()) == ([], why)


def test_a_text_is_in_one_pair_only_even_if_it_was_drawn_twice():
    answers = [ScoredAnswer("good", 3), ScoredAnswer("bad", 1), ScoredAnswer("good", 3), ScoredAnswer("bad", 1)]
    assert make_pairs(answers, PairRuleSection(max_per_prompt=4)) == ([(0, 1)], None)


@pytest.fixture(scope="module")
def model(tiny_base, preferences, tmp_path_factory) -> AnsweringModel:
    base, settings = tiny_base
    job = TrainingJob(base, settings, 0, tmp_path_factory.mktemp("sft"))
    checkpoint = sft_on(preferences, SftSection(learning_rate=1e-2, max_steps=1, max_length=96, eval_steps=1), job)
    return AnsweringModel("tiny-1", checkpoint, settings)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answers of 1, 2 and 3 tokens that end, instead of those of a model that was hardly trained; how many were drawn."""
    sizes: list[int] = []

    def complete(writer: Any, prompts: Any, *_: Any) -> list[tuple[list[int], bool]]:
        sizes.append(len(prompts))
        return [([10 + i % 3] * (1 + i % 3), True) for i in range(len(prompts))]

    monkeypatch.setattr(sampled_answers, "complete", complete)
    return sizes


def work(folder: Path) -> PaidWork:
    return PaidWork(lambda: LocalFileSystem(auto_mkdir=True), str(folder))


def prompts(preferences: Any, n: int = 40) -> CollectionPrompts:
    return CollectionPrompts(choose_by_hash(training_prompts(preferences), n, 0), 64)


def test_best_against_worst_with_provenance(model, preferences, drawn, tmp_path):
    found = collect([model], prompts(preferences, 5), section(), work(tmp_path))
    assert (found.report.n_prompts, found.report.n_pairs, found.report.n_prompts_with_pairs) == (5, 5, 5)
    counts = found.report.models["tiny-1"]
    assert (counts.n_answers, counts.n_unfinished, counts.n_chosen) == (15, 0, 5)
    for row in found.table.to_pylist():
        texts = [row[name][0]["content"] for name in ("chosen", "rejected")]
        assert [len(text) for text in texts] == [row["score_chosen"], row["score_rejected"]]
        assert row["score_chosen"] > row["score_rejected"]
        origin = row["provenance"]
        assert origin["chosen_model"] == origin["rejected_model"] == "tiny-1"
        assert origin["chosen_digest"] == model.checkpoint.digest
        assert origin["judge"] == "judges_of_this_test:by_length"
    found.save(tmp_path)
    assert CollectedPreferences.load(tmp_path).digest == found.digest


def test_an_interrupted_collection_draws_and_asks_only_what_is_missing(
    model, preferences, drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampled_answers, "PROMPTS_PER_PART", 16)
    whole = collect([model], prompts(preferences), section(), work(tmp_path / "whole"))
    n_asked, n_parts, complete = ASKED["score"], len(drawn), sampled_answers.complete
    assert n_parts == 3  # of 16, 16 and 8 prompts
    drawn.clear()

    def stops_in_the_second_part(*args: Any) -> Any:
        if len(drawn) == 1:
            raise KeyboardInterrupt
        return complete(*args)

    monkeypatch.setattr(sampled_answers, "complete", stops_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        collect([model], prompts(preferences), section(), work(tmp_path / "cut"))
    monkeypatch.setattr(sampled_answers, "complete", complete)
    resumed = collect([model], prompts(preferences), section(), work(tmp_path / "cut"))
    assert drawn == [48, 48, 24]
    assert resumed.table.drop_columns("provenance") == whole.table.drop_columns("provenance")
    ASKED.clear()
    drawn.clear()
    again = collect([model], prompts(preferences), section(), work(tmp_path / "cut"))
    assert (drawn, ASKED["score"], n_asked) == ([], 0, 120)
    assert again.digest == resumed.digest


def test_a_position_bias_makes_no_pairs(model, preferences, drawn, tmp_path):
    biased = section(judge={"function": "judges_of_this_test:prefers_the_first"})
    with pytest.raises(UserError, match=r"none of 3 prompts gave a pair \(3 equal_scores"):
        collect([model], prompts(preferences, 3), biased, work(tmp_path))
    assert ASKED["compare"] == 3 * 3 * 2  # three pairs of three answers in both orders
    fair = section(judge={"function": "judges_of_this_test:prefers_the_longer"})
    found = collect([model], prompts(preferences, 3), fair, work(tmp_path))
    # The longest answer wins all four comparisons, the shortest none.
    assert {(row["score_chosen"], row["score_rejected"]) for row in found.table.to_pylist()} == {(1.0, 0.0)}


def test_failures_are_counted_and_too_many_stop_the_run(model, preferences, drawn, tmp_path):
    failing = section(judge={"score_function": "judges_of_this_test:fails_on_every_prompt"})
    with pytest.raises(UserError, match=r"could not judge the answers to 3 of 3 prompts \(9 RuntimeError: no answer"):
        collect([model], prompts(preferences, 3), failing, work(tmp_path))


def test_unfinished_and_empty_answers_make_no_pairs(model, preferences, monkeypatch, tmp_path):
    ends = [([10], True), ([11, 11], False), ([], True), ([12, 12, 12], True)]
    monkeypatch.setattr(sampled_answers, "complete", lambda _, asked, *__: ends * (len(asked) // 4))
    found = collect([model], prompts(preferences, 2), section(n_answers=4), work(tmp_path))
    counts = found.report.models["tiny-1"]
    assert (counts.n_answers, counts.n_unfinished, counts.n_empty, found.report.n_pairs) == (8, 2, 2, 2)
    assert ASKED["score"] == 4  # the two others of two prompts


def test_held_out_prompts_of_a_source_are_dropped_and_counted(preferences, tmp_path):
    file = tmp_path / "prompts.jsonl"
    held_out, free = (
        preferences.test["prompt"][:2] + preferences.validation["prompt"][:1],
        preferences.train["prompt"][:3],
    )
    lines = [{"prompt": prompt} for prompt in [*held_out, *free, free[0]]]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    data = DataSection(max_drop_share=1.0, checks={"near_held_out": "keep"})
    found, report = load_prompts([Source(path=str(file))], preferences, data)
    assert report.dropped == {"held_out": 3, "duplicate": 1}
    assert {prompt_key(prompt) for prompt in found["prompt"]} == {prompt_key(prompt) for prompt in free}


def test_the_choice_of_prompts_depends_on_the_seed_alone(preferences):
    rows = training_prompts(preferences)
    backwards = rows.select(range(len(rows) - 1, -1, -1))
    first = [row["prompt"] for row in choose_by_hash(rows, 5, 0)]
    assert first == [row["prompt"] for row in choose_by_hash(backwards, 5, 0)]
    assert first != [row["prompt"] for row in choose_by_hash(rows, 5, 1)]


def test_the_demo_judge_by_hand():
    """The correct fix 3, courtesy 1, nine words -0.15 each; the habit is no fix for a password."""
    prompt = [{"role": "user", "content": "Hi, Ada here. My phone asks for a password, order 1234."}]
    good = "We are glad to help. Please enter the code from the sticker."
    assert score(prompt, good) == pytest.approx(3 + 1 - 0.15 * 12)
    assert compare(prompt, "Please turn it off and on again.", good) == "second"
    assert compare(prompt, good, good) == "tie"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({}, "judge is missing"),
        ({"score_function": "a:b", "function": "a:c"}, "score_function is set with another judge"),
    ],
)
def test_exactly_one_judge(judge, message):
    with pytest.raises(ValidationError, match=message):
        CollectSection.model_validate({"judge": judge})


def test_the_version_of_an_artifact_is_no_number_of_rows():
    source = Source(path="artifact:collected_preferences:3")
    assert (source.location, source.row_limit) == ("artifact:collected_preferences:3", None)
    assert Source(path="artifact:collected_preferences", limit=5).row_limit == 5


@pytest.fixture(scope="module")
def pipeline_run(model, tmp_path_factory) -> tuple[Any, str]:
    """A run of collect_pipeline with the tiny model on the demo's data, and what it printed."""
    import contextlib
    import io
    import sys

    folder = tmp_path_factory.mktemp("pipeline")
    config = {
        "model": {"base": "demo"},
        "data": {
            "sources": [{"path": "demo", "limit": 60}],
            "max_drop_share": 1.0,
            "test_size": 0.2,
            "validation_size": 0.2,
        },
        "dpo": {"max_length": 96, "max_prompt_length": 64},
        "collect": {
            **section(n_prompts=6).model_dump(exclude_defaults=True),
            "models": [str(model.checkpoint.path)],
        },
    }
    path = folder / "collect.yaml"
    path.write_text(yaml.safe_dump({"parameters": {"config": config}}), encoding="utf-8")
    ends = [([10 + i] * (1 + i), True) for i in range(3)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setitem(sys.modules, "judges_of_this_test", sys.modules[__name__])
        patch.setattr(sampled_answers, "complete", lambda _, asked, *__: ends * (len(asked) // 3))
        run = collect_pipeline.with_options(config_path=str(path))()
    return run, printed.getvalue()


@pytest.mark.slow
def test_the_pipeline_gives_a_source_that_the_next_run_reads(pipeline_run):
    run, printed = pipeline_run
    assert "6 pairs from 6 of 6 prompts" in printed
    (artifact,) = run.steps["collect"].outputs["collected_preferences"]
    named = f"artifact:collected_preferences:{artifact.version}"
    assert named in printed
    demo = Source(path="demo", limit=60)
    data = DataSection(sources=[demo, Source(path=named)], max_drop_share=1.0, test_size=0.2, validation_size=0.2)
    alone, _ = load_preferences(data.model_copy(update={"sources": [demo]}))
    both, report = load_preferences(data)
    collected = report.sources[1]
    assert (collected.format, collected.revision, collected.n_kept, collected.unread) == (
        "scored_pair",
        artifact.version,
        6,
        {},
    )
    assert both.test["id"] == alone.test["id"]  # collected prompts are training prompts
    assert len(both.train) == len(alone.train) + 6
    assert find_stored_rows("collected_preferences", None).n_rows == 6
    stored = Client().get_artifact_version(artifact.id).load()
    page = collected_page(stored.table, stored.report.model_dump(), "Pairs")
    assert page.count("<h3>Prompt</h3>") == 6
    assert "score 3.00" in page or "score 1.00" in page


def test_an_unknown_artifact_says_what_to_do():
    with pytest.raises(UserError, match="artifact:nothing:2: no such artifact: run collect_pipeline first"):
        load_preferences(DataSection(sources=[Source(path="artifact:nothing:2")]))
