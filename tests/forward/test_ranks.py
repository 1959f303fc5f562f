"""Several processes score and answer: what they find is that of one process to the bit, and all have about as much to do."""

import os

import numpy as np
import pytest
import torch
from support.stages import pair_tokens, sft_on

from posttrain.config import EvaluationSection, GenerationsSection, SftSection
from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import generate
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.scoring import EvaluationData, evaluate
from posttrain.forward.balance import balance
from posttrain.forward.logprobs import Batching, ResponseLogps, merge, part_of
from posttrain.forward.ranks import LoadedBy, on_ranks
from posttrain.training.reference import ReferencePolicy, score_reference
from posttrain.training.trainer import TrainingJob

SECTION = EvaluationSection(
    tokens_per_batch=256, n_kl_pairs=4, generations=GenerationsSection(n=8, max_new_tokens=6, temperature=2.0)
)


@pytest.fixture(scope="module")
def trained(tiny_base, preferences, tmp_path_factory):
    base, section = tiny_base
    folder = tmp_path_factory.mktemp("ranks")
    sft = SftSection(max_steps=1, max_length=96, eval_steps=1)
    return sft_on(preferences, sft, TrainingJob(base, section, 0, folder / "sft"))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
@pytest.mark.parametrize("n", [2, 3])
def test_ranks_find_what_one_process_finds(trained, tiny_base, preferences, n):
    """Reference, evaluation with KL, and sampled answers: equal to the last bit."""
    base, model = tiny_base
    tokens = pair_tokens(preferences, base, model)
    models, data = EvaluatedModels(base, model, trained), EvaluationData(preferences, tokens)
    found = {}
    for processes in (1, n):
        section = SECTION.model_copy(update={"processes": processes})
        reference = score_reference(tokens, ReferencePolicy(trained, base, model, processes), 256)
        evaluation = evaluate(models, data, section)
        answers = generate(preferences, tokens, models, section)
        found[processes] = (reference.table, evaluation.pairs, evaluation.figures, answers)
    assert found[n] == found[1]


def test_batches_are_divided_by_tokens(tiny_base, preferences):
    """No part has more than the mean and one batch, and the parts are the batches that one process has, each once."""
    rows = pair_tokens(preferences, *tiny_base).rows("train")
    prompts, responses = [*rows["prompt_ids"]] * 2, [*rows["chosen_ids"], *rows["rejected_ids"]]
    batches = [[i] for i in range(len(responses))]
    parts = [part_of(batches, (prompts, responses), Batching(1, "", part, 3)) for part in range(3)]
    assert sorted(batch for part in parts for batch in part) == batches
    n_tokens = [sum(len(prompts[i]) + len(responses[i]) for [i] in part) for part in parts]
    assert max(n_tokens) / (sum(n_tokens) / 3) < 1.02


def test_the_longest_go_first_to_the_part_with_least():
    """9 and 8 open the parts; 5 joins 8 and 4 joins 9, and 2 is left for either of two equal parts."""
    assert balance([5, 9, 2, 8, 4], 2) == [[1, 4, 2], [3, 0]]
    assert balance([5, 9, 2, 8, 4, 1], 2, room=3) == [[1, 4, 2], [3, 0, 5]]
    assert balance([9, 1, 1, 1], 2, room=2) == [[0, 3], [1, 2]]
    assert balance([3], 2) == [[0], []]


def test_a_response_that_no_part_has_is_an_error(tiny_base, preferences):
    rows = pair_tokens(preferences, *tiny_base).rows("train").select([0])
    half = ResponseLogps(np.array([1]), np.array([-2.0], dtype=np.float32))
    with pytest.raises(ValueError, match="not each of the 2 once"):
        merge(rows, [half])
    whole = merge(rows, [half, ResponseLogps(np.array([0]), np.array([-1.0], dtype=np.float32))])
    assert [*whole.chosen_logps, *whole.rejected_logps] == [-1.0, -2.0]


def _end_in_another_process(own):
    if own.rank:
        os._exit(7)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_a_process_that_ends_is_an_error(tiny_base):
    base, section = tiny_base
    n_threads = torch.get_num_threads()
    with (
        pytest.raises(RuntimeError, match=r"process 1 of 2 ended \(exit code 7\)"),
        on_ranks(LoadedBy(base, section, None, 2)) as ranks,
    ):
        ranks.run(_end_in_another_process)
    assert torch.get_num_threads() == n_threads


def test_more_processes_than_gpus_are_an_error(tiny_base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    base, section = tiny_base
    assert LoadedBy(base, section, None).n == 2
    with pytest.raises(UserError, match="processes is 3, but this machine has 2 GPUs"):
        _ = LoadedBy(base, section, None, 3).n
