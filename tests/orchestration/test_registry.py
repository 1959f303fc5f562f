"""Promotion in real registries, cut off at every point and done by two at once: one champion, and a rerun repairs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event
from sqlmodel import Session, text
from support.registries import BAD, Cut, Place, cut
from zenml import log_metadata
from zenml.client import Client
from zenml.enums import ModelStages

import materializers  # noqa: F401 (registers them)
from posttrain.errors import UserError
from posttrain.evaluation.gate.champion import Champion
from posttrain.orchestration.model_versions import registry as _registry
from posttrain.orchestration.model_versions.registry import (
    digest_of,
    reconcile,
    sole_champion,
    standing_champion,
)
from posttrain.tracking.mlflow_registry import ModelRegistry

pytestmark = pytest.mark.slow


@pytest.fixture
def place(request: pytest.FixtureRequest, two_made: Any) -> Place:
    return Place(f"model-{abs(hash(request.node.name))}", two_made)


def test_a_promoted_model_is_the_champion_in_both_registries_with_links_both_ways(place: Place) -> None:
    assert place.promote("first").promoted
    assert place.champions() == (["dpo-first"], "dpo-first")
    ours = place.version("first").run_metadata
    theirs = MlflowClient(place.uri).get_model_version_by_alias(place.name, "champion")
    assert str(theirs.version) == ours["mlflow_version"]
    assert f"/models/{place.name}/versions/{theirs.version}" in ours["mlflow_model"]
    assert theirs.tags["zenml.model_version_id"] == str(place.version("first").id)
    assert theirs.tags["posttrain.digest"] == ours["judgement"]["digest"]
    assert theirs.source == place.candidates["first"].uri  # with MLmodel, beside the folder of the weights
    run = MlflowClient(place.uri).get_run(theirs.run_id)
    assert run.data.tags["posttrain.pipeline_run"] == str(place.run.id)
    linked = Client().list_model_version_artifact_links(model_version_id=place.version("first").id)
    assert {link.artifact_version.name for link in linked} == {"dpo_checkpoint", "other_checkpoint"}


def test_a_refused_model_is_the_challenger_and_keeps_its_reasons(place: Place) -> None:
    place.promote("first")
    place.promote("second", BAD)
    assert place.champions() == (["dpo-first"], "dpo-first")
    assert place.alias("challenger") == "dpo-second"
    assert place.version("second").run_metadata["judgement"]["reasons"] == BAD.reasons
    assert MlflowClient(place.uri).get_model_version_by_alias(place.name, "challenger").description == "; ".join(BAD.reasons)  # fmt: skip # noqa: E501


def test_a_version_older_than_the_champion_is_not_the_challenger(place: Place) -> None:
    place.promote("first", BAD)
    assert place.alias("challenger") == "dpo-first"
    place.promote("second")
    assert (place.alias("challenger"), place.alias("champion")) == (None, "dpo-second")


def test_registering_the_same_result_again_changes_nothing(place: Place) -> None:
    place.promote("first")
    place.promote("first")
    reconcile(place.name, place.uri)
    assert place.n_versions() == (1, 1)
    assert place.champions() == (["dpo-first"], "dpo-first")


def test_a_new_champion_replaces_the_old_one(place: Place) -> None:
    place.promote("first")
    place.promote("second", opponent=standing_champion(place.name, "of the second"))
    assert place.champions() == (["dpo-second"], "dpo-second")
    assert place.version("first").stage == ModelStages.ARCHIVED


def test_a_champion_is_compared_with_the_one_it_replaced(place: Place) -> None:
    """So a repeated run finds what it found before."""
    assert standing_champion(place.name, "any") == Champion()
    place.promote("first")
    first = standing_champion(place.name, "any other")
    assert (first.version, first.digest) == ("dpo-first", digest_of(place.version("first")))
    assert standing_champion(place.name, str(first.digest)) == Champion()
    place.promote("second", opponent=first)
    assert standing_champion(place.name, str(digest_of(place.version("second")))) == first


def test_a_model_compared_with_an_outdated_champion_is_refused(place: Place) -> None:
    place.promote("first")
    late = place.promote("second")  # judged when there was no champion
    assert not late.promoted
    assert "version dpo-first has become the champion in the meantime: run again" in late.reasons[-1]
    assert place.champions() == (["dpo-first"], "dpo-first")


def test_a_version_promoted_by_hand_is_reported(place: Place) -> None:
    Client().create_model(place.name)
    Client().create_model_version(place.name, "by-hand").set_stage(ModelStages.PRODUCTION)
    with pytest.raises(UserError, match=r"version by-hand of model .* this pipeline did not promote it"):
        standing_champion(place.name, "any")


BEFORE, AFTER = True, False
FIRST, LATER = False, True
CUTS: list[tuple[bool, Callable[[], Any], str, bool]] = [
    (FIRST, lambda: Client, "create_model", AFTER),
    (FIRST, lambda: type(Client().zen_store), "update_model_version", AFTER),
    (FIRST, lambda: MlflowClient, "create_registered_model", AFTER),
    (FIRST, lambda: MlflowClient, "set_registered_model_alias", BEFORE),
    (LATER, lambda: Client, "create_model_version", AFTER),
    (LATER, lambda: _registry, "log_metadata", BEFORE),
    (LATER, lambda: _registry, "log_metadata", AFTER),
    (LATER, lambda: type(Client().zen_store), "update_model_version", AFTER),
    (LATER, lambda: MlflowClient, "create_model_version", BEFORE),
    (LATER, lambda: MlflowClient, "create_model_version", AFTER),
    (LATER, lambda: MlflowClient, "set_registered_model_alias", BEFORE),
]


@pytest.mark.parametrize(
    ("standing", "target", "name", "before"),
    CUTS,
    ids=[
        f"{name}, {'before' if before else 'after'}, {'later' if later else 'first'}" for later, _, name, before in CUTS
    ],
)
def test_an_interrupted_promotion_leaves_one_champion_and_a_rerun_completes_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, standing: bool, target: Any, name: str, before: bool
) -> None:
    opponent = Champion()
    if standing:
        place.promote("first")
        opponent = standing_champion(place.name, "of the second")
    with monkeypatch.context() as patched:
        cut(patched, target(), name, before)
        with pytest.raises(Cut):
            place.promote("second", opponent=opponent)

    reconcile(place.name, place.uri)  # as any later run does first
    zenml, mlflow = place.champions()
    assert (zenml, mlflow) in [([], None), (["dpo-first"], "dpo-first"), (["dpo-second"], "dpo-second")]
    assert bool(zenml) or not standing

    assert place.promote("second", opponent=opponent).promoted
    assert place.champions() == (["dpo-second"], "dpo-second")
    assert place.n_versions() == (1 + standing, 1 + standing)


@contextmanager
def killed_at_commit(number: int) -> Iterator[list[int]]:
    """Inside, every database of this process is lost at a commit, before it takes effect. The list counts the commits."""
    commits: list[int] = []

    def commit(connection: Any) -> None:
        commits.append(len(commits))
        if len(commits) >= number:  # nor does anything that the dying process attempts
            connection.connection.rollback()  # its locks end with the process
            raise Cut

    event.listen(Engine, "commit", commit)
    try:
        yield commits
    finally:
        event.remove(Engine, "commit", commit)


@pytest.mark.parametrize("later", [FIRST, LATER], ids=["first", "later"])
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_at_every_commit_of_a_promotion_readers_and_later_runs_work(place: Place, later: bool, stride: int) -> None:
    """ZenML writes one metadata value after the other, each in a commit of its own."""
    number, name, done = 1 - stride, place.name, False
    while not done:
        number += stride
        place.name, opponent = f"{name}-{number}", Champion()
        if later:
            place.promote("first")
            opponent = standing_champion(place.name, "of the second")
        with killed_at_commit(number) as commits:
            try:
                place.promote("second", opponent=opponent)
                done = True
            except Cut:
                pass
        found = standing_champion(place.name, "any")  # what a run that reads at this moment compares with
        assert found.version in (*(["dpo-first"] if later else [None]), "dpo-second")
        reconcile(place.name, place.uri)
        assert place.promote("second", opponent=opponent).promoted
        assert place.champions() == (["dpo-second"], "dpo-second")
        assert place.n_versions() == (1 + later, 1 + later)
    assert number > len(commits) > 10, "the commits of ZenML and MLflow are counted"


def test_a_version_of_an_older_release_is_read(place: Place) -> None:
    """One metadata value for each field."""
    place.promote("first")
    old: dict[str, Any] = place.version("first").run_metadata["judgement"]
    version = Client().create_model_version(place.name, "dpo-old")
    for key, value in list(old.items())[:-1]:
        log_metadata(metadata={key: value}, model_version_id=version.id)
    assert digest_of(place.version("old")) is None, "incomplete: its run was killed"
    log_metadata(metadata={"pipeline_run_name": "some run"}, model_version_id=version.id)
    assert digest_of(place.version("old")) == old["digest"]


@pytest.mark.parametrize(
    ("target", "name"),
    [(_registry, "reconcile"), (_registry, "log_metadata"), (ModelRegistry, "set_alias"), (ModelRegistry, "register")],
    ids=["reconcile", "log_metadata", "set_alias", "register"],
)
def test_two_concurrent_promotions_leave_one_champion(
    place: Place, monkeypatch: pytest.MonkeyPatch, target: Any, name: str
) -> None:
    """All of the second promotion happens in the midst of the first."""
    call, inside = getattr(target, name), threading.Event()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not inside.is_set():
            inside.set()
            place.promote("second")
        return call(*args, **kwargs)

    monkeypatch.setattr(target, name, interrupted)
    place.promote("first")
    zenml, mlflow = place.champions()
    assert [mlflow] == zenml
    assert place.n_versions() == (2, 2)


def test_an_outdated_alias_is_corrected(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading who the champion is and writing it, another promotion comes and goes."""
    place.promote("first")
    first, call, inside = standing_champion(place.name, "x"), ModelRegistry.set_alias, threading.Event()

    def late(registry: ModelRegistry, alias: str, number: str | None) -> None:
        if not inside.is_set():
            inside.set()
            place.promote("second", opponent=first)
        call(registry, alias, number)

    monkeypatch.setattr(ModelRegistry, "set_alias", late)
    reconcile(place.name, place.uri)
    assert place.champions() == (["dpo-second"], "dpo-second")


def test_two_threads_leave_one_champion(place: Place) -> None:
    threads = [threading.Thread(target=place.promote, args=(which,)) for which in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reconcile(place.name, place.uri)
    zenml, mlflow = place.champions()
    assert len(zenml) == 1
    assert [mlflow] == zenml


def test_of_two_versions_in_production_one_remains(place: Place) -> None:
    """What ZenML's own check cannot prevent: two processes that both saw the place empty."""
    place.promote("first")
    place.promote("second", opponent=standing_champion(place.name, "x"))
    with Session(Client().zen_store.engine) as session:
        ids = [str(place.version(which).id).replace("-", "") for which in ("first", "second")]
        for version_id in ids:
            update = text("UPDATE model_version SET stage = 'production' WHERE id = :id").bindparams(id=version_id)
            session.exec(update)  # type: ignore[call-overload]
        session.commit()
    assert len(place.champions()[0]) == 2
    champion = sole_champion(place.name)
    assert champion is not None
    assert champion.name == "dpo-second"
    assert place.champions()[0] == ["dpo-second"]


def test_without_mlflow_the_run_continues_and_the_next_one_catches_up(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    alive, place.uri = place.uri, "http://127.0.0.1:9"
    assert place.promote("first").promoted
    assert "MLflow's registry of model-" in caplog.text
    place.uri = alive
    reconcile(place.name, place.uri)
    assert place.champions() == (["dpo-first"], "dpo-first")
