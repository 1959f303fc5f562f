"""The ledger of looks at test sets, in a real ZenML registry."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.figures import figures_of, table
from zenml.client import Client
from zenml.models import ModelVersionUpdate

from posttrain.config import GateSection
from posttrain.evaluation.clusters import prompts_digest, prompts_sketch
from posttrain.evaluation.figures import Figures
from posttrain.orchestration.gate_ledger import take_look

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures() -> Figures:
    return figures_of(table())


def look_at(name: str, figures: Figures, model: str, prompts: str = "p", planned: int = 4, opponent: str = "s"):
    """Take a look at test prompts, one for each letter."""
    messages = [[{"role": "user", "content": letter}] for letter in prompts]
    of_prompts = {"test_prompts": prompts_digest(messages), "test_prompts_sketch": prompts_sketch(messages)}
    of_run = figures.model_copy(update={"digests": {**of_prompts, "dpo": model, "sft": opponent}})
    return take_look(name, of_run, GateSection(planned_looks=planned))


def test_each_comparison_is_one_look(figures):
    assert look_at("ledger-a", figures, "one").number == 1
    assert look_at("ledger-a", figures, "two").model_dump() == {"number": 2, "used": 0.25}
    assert look_at("ledger-a", figures, "one").model_dump() == {"number": 1, "used": 0.0}  # unchanged rerun
    assert look_at("ledger-a", figures, "one", opponent="other").number == 3
    assert look_at("ledger-a", figures, "one", prompts="q").number == 1
    assert look_at("ledger-b", figures, "one").number == 1


def test_used_up_looks_stay_used_if_more_are_planned_later(figures):
    for model in "abcd":
        assert look_at("ledger-c", figures, model).is_within(GateSection(planned_looks=4))
    fifth = look_at("ledger-c", figures, "e", planned=365)
    assert (fifth.number, fifth.used) == (5, 1.0)
    assert not fifth.is_within(GateSection(planned_looks=365))


def test_two_runs_at_once_count_each_other(figures):
    look_at("ledger-d", figures, "first")
    with ThreadPoolExecutor(4) as pool:
        looks = list(pool.map(lambda model: look_at("ledger-d", figures, model), "abcd"))
    assert sorted(look.number for look in looks) == [2, 3, 4, 5]


def test_looks_at_a_test_set_that_grows_count_as_the_share_that_they_have_seen(figures):
    look_at("ledger-e", figures, "monday", "ab")
    tuesday = look_at("ledger-e", figures, "tuesday", "abc")
    assert (tuesday.number, tuesday.used) == (2, pytest.approx(2 / 3 / 4))
    wednesday = look_at("ledger-e", figures, "wednesday", "abcd")
    assert (wednesday.number, wednesday.used) == (3, pytest.approx((2 / 4 + 3 / 4) / 4))
    assert look_at("ledger-e", figures, "thursday", "xy").model_dump() == {"number": 1, "used": 0.0}


def test_a_look_of_an_older_release_counts_for_the_same_prompts(figures):
    """Its description held only the number of planned looks."""
    look_at("ledger-f", figures, "old", "ab")
    client = Client()
    (old,) = client.list_model_versions(model="ledger-f-looks").items
    client.zen_store.update_model_version(old.id, ModelVersionUpdate(description="4"))
    assert look_at("ledger-f", figures, "new", "ab").used == 1 / 4
    assert look_at("ledger-f", figures, "new", "abc").used == pytest.approx(2 / 3 / 4)  # that of `new`, not of `old`
