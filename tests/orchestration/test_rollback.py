"""Production goes back in both registries at once, and what was taken out does not come back by itself."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.registries import BAD, Cut, Place, cut
from zenml.enums import ModelStages

from posttrain.cli.main import main
from posttrain.errors import UserError
from posttrain.orchestration.model_versions import rollback as _rollback
from posttrain.orchestration.model_versions.registry import judgement_of, sole_champion, standing_champion
from posttrain.orchestration.model_versions.rejections import rejection_of, standing_rejection
from posttrain.orchestration.model_versions.rollback import roll_back

pytestmark = pytest.mark.slow


@pytest.fixture
def place(request: pytest.FixtureRequest, two_made: Any) -> Place:
    """A model whose second version replaced the first."""
    place = Place(f"rolled-{abs(hash(request.node.name))}", two_made)
    place.promote("first")
    place.promote("second", opponent=standing_champion(place.name, "of the second"))
    return place


def test_the_replaced_version_is_back_in_both_registries(place: Place) -> None:
    result = CliRunner().invoke(main, ["rollback", place.name, "--reason", "answers in French"])
    assert result.exit_code == 0, result.output
    assert f"{place.name}: version dpo-first is in production" in result.output
    assert place.champions() == (["dpo-first"], "dpo-first")
    rejection = rejection_of(place.version("second"))
    assert rejection is not None
    assert (rejection.reason, rejection.successor) == ("answers in French", "dpo-first")
    assert rejection.digest == place.version("second").run_metadata["judgement"]["digest"]


def test_the_rejected_model_is_not_promoted_again(place: Place) -> None:
    roll_back(place.name, None, "answers in French")
    again = place.promote("second", opponent=standing_champion(place.name, "of the second"))
    assert not again.promoted
    assert "the same model, version dpo-second, was taken out of production" in again.reasons[-1]
    assert "answers in French" in again.reasons[-1]
    assert place.champions() == (["dpo-first"], "dpo-first")
    judgement = judgement_of(place.version("second"))
    assert judgement is not None
    assert judgement.promoted, "that it was in production once stays part of its history"


def test_a_named_version_may_come_back_and_is_allowed_again(place: Place) -> None:
    roll_back(place.name, None, "answers in French")
    roll_back(place.name, "2", "it was the tokenizer")
    assert place.champions() == (["dpo-second"], "dpo-second")
    assert rejection_of(place.version("second")) is None
    digest = place.version("second").run_metadata["judgement"]["digest"]
    assert standing_rejection(place.name, digest).version is None
    with pytest.raises(
        UserError, match=r"nothing to go back to: no version before dpo-second was promoted and not rej"
    ):
        roll_back(place.name, None, "again")


def test_an_interrupted_rollback_is_completed_by_the_next_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        cut(patched, _rollback, "reject", before=False)
        with pytest.raises(Cut):
            roll_back(place.name, None, "answers in French")
    assert place.champions() == (["dpo-second"], "dpo-second")
    champion = sole_champion(place.name)
    assert champion is not None
    assert (champion.name, champion.stage) == ("dpo-first", ModelStages.PRODUCTION)
    assert place.version("second").stage == ModelStages.ARCHIVED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model"], "no-such-model: no such model, or it has no versions (models: "),
        (["NAME", "7"], "7: model NAME has no such version: it has promoted versions: dpo-second (2), dpo-first (1)"),
        (["NAME", "dpo-second"], "version dpo-second of model NAME is the model in production already"),
    ],
)
def test_what_cannot_be_rolled_back_to_is_one_line(place: Place, arguments: list[str], message: str) -> None:
    called = [argument.replace("NAME", place.name) for argument in arguments]
    result = CliRunner().invoke(main, ["rollback", *called, "--reason", "x"])
    assert result.exit_code == 1
    assert message.replace("NAME", place.name) in result.output
    assert place.champions() == (["dpo-second"], "dpo-second")


def test_a_refused_version_is_not_gone_back_to(place: Place) -> None:
    place.name += "-refused"
    place.promote("first", BAD)
    with pytest.raises(UserError, match=r"has no version in production: name the version to put there"):
        roll_back(place.name, None, "x")
    with pytest.raises(UserError, match=r"version dpo-first of model .* was never promoted \(gate\.min_gain\)"):
        roll_back(place.name, "dpo-first", "x")


def test_a_version_without_files_is_not_gone_back_to(place: Place) -> None:
    folder = Path(place.candidates["first"].uri)
    shutil.copytree(folder, folder.with_suffix(".kept"))
    shutil.rmtree(folder / "files")
    try:
        with pytest.raises(
            UserError, match=r"artifact dpo_checkpoint version \S+, made by step make_first .* is missing"
        ):
            roll_back(place.name, None, "x")
    finally:
        shutil.rmtree(folder)
        folder.with_suffix(".kept").rename(folder)
    assert place.champions() == (["dpo-second"], "dpo-second")
    assert rejection_of(place.version("second")) is None
