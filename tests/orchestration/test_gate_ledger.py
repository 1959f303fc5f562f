"""The ledger of looks at test sets, in a real ZenML registry."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.figures import figures_of, table

from posttrain.config import GateSection
from posttrain.evaluation.figures import Figures
from posttrain.orchestration.gate_ledger import take_look

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures() -> Figures:
    return figures_of(table())


def look_at(name: str, figures: Figures, model: str, prompts: str = "p" * 64, planned: int = 4, opponent: str = "s"):
    of_run = figures.model_copy(update={"digests": {"test_prompts": prompts, "dpo": model, "sft": opponent}})
    return take_look(name, of_run, GateSection(planned_looks=planned))


def test_each_comparison_is_one_look(figures):
    assert look_at("ledger-a", figures, "one").number == 1
    assert look_at("ledger-a", figures, "two").model_dump() == {"number": 2, "used": 0.25}
    assert look_at("ledger-a", figures, "one").model_dump() == {"number": 1, "used": 0.0}  # unchanged rerun
    assert look_at("ledger-a", figures, "one", opponent="other").number == 3
    assert look_at("ledger-a", figures, "one", prompts="q" * 64).number == 1
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
