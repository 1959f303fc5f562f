"""`posttrain ab` on the command line, with the run's answers replaced."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.run_reports import make_report

from posttrain.cli.main import main
from posttrain.feedback.ab import digest, dpo_is_left


@pytest.fixture
def generations(monkeypatch):
    """The answers that a run made, the last one and the one before it."""
    other = make_report(text="other").generations
    found = make_report().generations
    versions = [SimpleNamespace(load=lambda: other), SimpleNamespace(load=lambda: found)]
    client = SimpleNamespace(list_artifact_versions=lambda **_: SimpleNamespace(items=versions))
    monkeypatch.setattr("posttrain.orchestration.voted_run.Client", lambda: client)
    return found


def saved(tmp_path, generations, answers=None):
    ids = [exchange.id for exchange in generations.exchanges[:3]]
    choices = {id: "left" if dpo_is_left(id) else "right" for id in ids}
    path = tmp_path / "choices.json"
    path.write_text(json.dumps({"answers": answers or digest(generations), "rater": "ab", "choices": choices}))
    return str(path)


def test_score_finds_the_run_by_the_digest_in_the_file(generations, tmp_path):
    result = CliRunner().invoke(main, ["ab", "score", saved(tmp_path, generations)])
    assert result.exit_code == 0, result.output
    assert "DPO preferred on 100.0% of 3 prompts" in result.output
    assert (
        "3 votes by 1 raters; agreement between them (Krippendorff's alpha): no prompt has votes that could differ"
        in result.output
    )


def test_votes_on_unknown_answers_say_so(generations, tmp_path):
    result = CliRunner().invoke(main, ["ab", "score", saved(tmp_path, generations, answers="gone")])
    assert result.exit_code == 1
    assert (
        "none of the last 2 runs with answers has those that the votes are about: name the run with --run"
        in result.output
    )


def test_pairs_are_written_and_counted(generations, tmp_path):
    target = tmp_path / "voted.jsonl"
    result = CliRunner().invoke(main, ["ab", "pairs", saved(tmp_path, generations), "--to", str(target)])
    assert result.exit_code == 0, result.output
    assert "3 pairs; 0 prompts without a majority were left out" in result.output
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["chosen"][0]["content"] for row in rows] == ["some text 0", "some text 1", "some text 2"]


@pytest.mark.parametrize("command", [["score"], ["pairs"], ["export"], ["export", "page.html", "--argilla", "blind"]])
def test_votes_come_from_files_or_from_argilla(command):
    result = CliRunner().invoke(main, ["ab", *command])
    assert result.exit_code == 1
    assert "name either" in result.output
