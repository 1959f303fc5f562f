"""The reference: only pairs that a training reads are scored, and no pair is scored twice."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest
from support.stages import LENGTHS, pair_tokens, sft_on

from posttrain.config import DpoSection, Lengths, Passes, SftSection
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.forward.ranks import Ranks
from posttrain.training.dpo import train_dpo
from posttrain.training.order import epoch_order
from posttrain.training.reference import LOGPS, ReferencePolicy, TrainedOn, score_reference
from posttrain.training.trainer import TrainingJob

pytestmark = pytest.mark.slow

DPO = DpoSection(learning_rate=1e-3, max_steps=3, max_length=96, max_prompt_length=64, eval_steps=3)
SEED = 5


@pytest.fixture(scope="module")
def trained(tiny_base, preferences, tmp_path_factory):
    """An SFT checkpoint, the tokens of 40 training pairs, and all of their log-probabilities."""
    base, section = tiny_base
    folder = tmp_path_factory.mktemp("reference")
    sft = SftSection(max_steps=1, max_length=96, eval_steps=1)
    checkpoint = sft_on(preferences, sft, TrainingJob(base, section, 0, folder / "sft"))
    policy, tokens = ReferencePolicy(checkpoint, base, section), pair_tokens(preferences, base, section)
    whole = score_reference(tokens, policy, 512)
    return SimpleNamespace(policy=policy, tokens=tokens, whole=whole, folder=folder)


@pytest.fixture
def n_scored(monkeypatch):
    """How many pairs each call of the model was given, by split."""
    counts = {}

    def score(ranks, rows, tokens_per_batch, label):
        counts[label] = len(rows)
        return own(ranks, rows, tokens_per_batch, label)

    own = Ranks.score
    monkeypatch.setattr(Ranks, "score", score)
    return counts


@pytest.mark.parametrize(
    ("epochs", "max_steps", "n_steps", "n_read"),
    [(1.0, None, 6, 41), (0.5, None, 3, 24), (0.01, None, 1, 8), (2.0, None, 12, 41), (1.0, 2, 2, 16), (1.0, 9, 9, 41)],
)
def test_how_many_of_41_rows_a_training_reads(epochs, max_steps, n_steps, n_read):
    """41 rows are five steps of 8 and one of 1."""
    passes = Passes(rows_per_step=8, epochs=epochs, max_steps=max_steps)
    assert (passes.n_steps(41), passes.n_read(41)) == (n_steps, n_read)


def test_only_the_pairs_that_dpo_reads_are_scored(trained, n_scored):
    """Three steps of 8 pairs read 24 of 40. Of several trainings, the longest counts."""
    shorter = DPO.model_copy(update={"max_steps": 1})
    found = score_reference(trained.tokens, trained.policy, 512, TrainedOn([shorter.passes, DPO.passes], SEED))
    n_validation, n_test = (len(trained.tokens.rows(split)) for split in ("validation", "test"))
    expected = {"reference, train": 24, "reference, validation": n_validation, "reference, test": n_test}
    assert n_scored == expected
    assert found.n_scored == 24 + n_validation + n_test
    assert found.key == trained.whole.key
    rows = found.rows("train")
    scored = {i for i, logp in enumerate(rows["ref_chosen_logps"]) if not math.isnan(logp)}
    assert scored == set(epoch_order(40, SEED)[:24])
    first = min(scored)
    assert rows["ref_chosen_logps"][first] == pytest.approx(trained.whole.rows("train")["ref_chosen_logps"][first])


def test_dpo_reads_no_other_pair(trained):
    """The same model, to the bit, whether the pairs that it does not read have log-probabilities or not."""
    table = trained.whole.table
    read = set(epoch_order(40, SEED)[:24])
    for name in LOGPS:
        values = [v if i in read or i >= 40 else None for i, v in enumerate(table[name].to_pylist())]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))
    part = replace(trained.whole, table=table)
    policy = trained.policy

    def train(reference, dpo, folder):
        job = TrainingJob(policy.base, policy.model, SEED, trained.folder / folder)
        return train_dpo(reference, policy.checkpoint, dpo, job)

    assert train(part, DPO, "part").digest == train(trained.whole, DPO, "whole").digest
    longer = DPO.model_copy(update={"max_steps": 4})
    with pytest.raises(UserError, match=r"8 of the 32 pairs that this training reads have no reference .* shorter"):
        train(part, longer, "longer")


def test_only_new_pairs_are_scored(trained, preferences, n_scored):
    """A run has all pairs but two. The next one scores these two, takes the rest to the bit, and asks for the same policy."""
    asked = []

    def find(policy):
        asked.append(policy)
        return [earlier]

    kept = preferences.train.select([i for i in range(40) if i not in (3, 7)])
    fewer = _tokens(trained, Preferences(kept, preferences.validation, preferences.test))
    earlier = score_reference(fewer, trained.policy, 512)
    n_scored.clear()
    found = score_reference(trained.tokens, trained.policy, 512, find=find)
    assert n_scored == {"reference, train": 2}
    assert asked == [earlier.policy] == [trained.whole.policy]
    assert found.key == trained.whole.key != earlier.key
    old = dict(zip(earlier.table["id"].to_pylist(), earlier.table["ref_chosen_logps"].to_pylist(), strict=True))
    new = dict(zip(found.table["id"].to_pylist(), found.table["ref_chosen_logps"].to_pylist(), strict=True))
    assert {name: new[name] for name in old} == old
    whole = trained.whole.table
    expected = dict(zip(whole["id"].to_pylist(), whole["ref_chosen_logps"].to_pylist(), strict=True))
    assert new == pytest.approx(expected)


def test_a_pair_with_other_tokens_is_scored_again(trained, preferences, n_scored):
    """The pairs are found by their tokens and not by their ids: other lengths cut some of them."""
    shorter = _tokens(trained, preferences, Lengths(max_length=40, max_prompt_length=20))
    found = score_reference(shorter, trained.policy, 512, find=lambda policy: [trained.whole])
    same = [
        row["id"]
        for row, old in zip(shorter.rows("train"), trained.tokens.rows("train"), strict=True)
        if all(row[name] == old[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    ]
    assert 0 < len(same) < 40
    assert n_scored["reference, train"] == 40 - len(same)
    assert found.n_scored == len(found.table)


def test_another_checkpoint_has_another_policy(trained, tmp_path, preferences):
    base, section = trained.policy.base, trained.policy.model
    sft = SftSection(max_steps=1, max_length=96, eval_steps=1, learning_rate=1e-2)
    other = sft_on(preferences, sft, TrainingJob(base, section, 0, tmp_path / "other"))
    asked = []

    def find(policy):
        asked.append(policy)
        return []

    score_reference(trained.tokens, ReferencePolicy(other, base, section), 512, find=find)
    assert asked != [trained.whole.policy]


def _tokens(trained, preferences, lengths=LENGTHS):
    return pair_tokens(preferences, trained.policy.base, trained.policy.model, lengths)


def test_lengths_of_the_fixture(trained):
    """The counts above hold for 40 training pairs."""
    assert (len(trained.tokens.rows("train")), trained.tokens.lengths) == (40, LENGTHS)
