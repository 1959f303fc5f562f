"""Metrics and intervals of an evaluation, compared with values worked by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.stages import pair_tokens, reference_on, sft_on

from posttrain.config import DataSection, DpoSection, EvaluationSection, Lengths, SftSection, Source
from posttrain.data.pair_set_loader import load_pair_sets, set_name
from posttrain.data.pair_sets import PairSets
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation import intervals, statistics
from posttrain.evaluation.calibration import calibrate
from posttrain.evaluation.divergence import NextTokenKL
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.intervals import bootstrap_mean, bootstrap_ratio, rank_correlation, wilson
from posttrain.evaluation.scoring import Evaluation, EvaluationData, evaluate
from posttrain.evaluation.statistics import compare, correct, perplexity, perplexity_ratio, summarise
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.trainer import TrainingJob

SECTION = EvaluationSection()


def test_wilson_by_hand():
    """8 of 10 at 95 %: (0.8 + 0.19207 +- 1.96 sqrt(0.016 + 0.0096)) / 1.38415, as in textbooks: 0.490 to 0.943."""
    estimate = wilson(8, 10, 0.95)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)


def test_wilson_interval_stays_between_0_and_1():
    assert wilson(0, 10, 0.95).low == 0
    assert wilson(10, 10, 0.95).high == pytest.approx(1)
    assert wilson(10, 10, 0.95).low == pytest.approx(0.7224672)


def test_a_tie_counts_one_half():
    assert correct(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_mcnemar_by_hand():
    """9 pairs gained, 1 lost: 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024."""
    newer = np.array([1.0] * 9 + [0.0] + [1.0] * 5)
    older = np.array([0.0] * 9 + [1.0] + [1.0] * 5)
    comparison = compare(newer, older, SECTION)
    assert (comparison.n_gained, comparison.n_lost) == (9, 1)
    assert comparison.p_value == pytest.approx(22 / 1024)
    assert comparison.gain.value == pytest.approx(8 / 15)
    assert comparison.gain.low < 8 / 15 < comparison.gain.high


def test_equal_models_have_zero_gain():
    same = np.array([1.0, 0.0, 1.0])
    assert compare(same, same, SECTION).p_value == 1.0


def test_bootstrap_is_deterministic_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    first, second = bootstrap_mean(values, SECTION), bootstrap_mean(values, SECTION)
    assert first == second
    assert bootstrap_mean(values, EvaluationSection(seed=1)).low != first.low
    half = 1.96 * values.std() / 20
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_resamples_whole_rows():
    """If every token has a loss of ln 2, the perplexity is 2 in every resample, whatever the lengths."""
    n_tokens = np.array([1, 5, 20])
    estimate = perplexity(-np.log(2) * n_tokens, n_tokens, SECTION)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2, 2, 2))


def test_the_interval_of_perplexity_depends_on_the_seed_alone():
    generator = np.random.default_rng(0)
    logps, n_tokens = -generator.exponential(50, 60), generator.integers(1, 20, 60)
    first, second = perplexity(logps, n_tokens, SECTION), perplexity(logps, n_tokens, SECTION)
    assert first == second
    assert first.low < first.value < first.high
    assert perplexity(logps, n_tokens, EvaluationSection(seed=1)) != first


def test_perplexity_weighs_tokens_not_responses():
    """2 nats over 1 token and 1 nat over 5: exp(3 / 6)."""
    assert perplexity(np.array([-2.0, -1.0]), np.array([1, 5]), SECTION).value == pytest.approx(np.exp(0.5))


def test_perplexity_ratio_counts_the_tokens_of_all_responses():
    """The newer model loses 1 nat on one token and 3 nats on three: 4 nats on 4 tokens, a factor of e."""
    column = {
        "sft_chosen_logps": np.array([-1.0, -3.0]),
        "dpo_chosen_logps": np.array([-2.0, -6.0]),
        "n_chosen_tokens": np.array([1, 3]),
    }
    found = perplexity_ratio(column, "dpo", "sft", SECTION)
    assert (found.value, found.low, found.high) == pytest.approx((np.e, np.e, np.e))


def test_rank_correlation_by_hand():
    """Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8; z = 1.0986 -+ 1.96 sqrt(1.32 / 2)."""
    found = rank_correlation(np.arange(5.0), np.array([2.0, 1.0, 4.0, 3.0, 50.0]), SECTION)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, -0.4572, 0.9909), abs=1e-3)
    assert rank_correlation(np.arange(5.0), np.ones(5), SECTION) is None


def test_calibration_by_hand():
    """Odds of 4 to 1 are a confidence of 80 %. With 6 of 10 pairs right, the distance is 0.2, all from one bin. Its
    variance is 0.24 / 9 = 0.0267, so sqrt(2 / pi) x (sqrt(0.04) - sqrt(0.04 - 0.0267)) = 0.0674 of it is noise. The interval is
    +- 2.262 x sqrt(0.0267) = 0.369. The Brier score is (6 x 0.04 + 4 x 0.64) / 10."""
    log_odds = np.log(4.001) * np.array([1.0] * 6 + [-1.0] * 4)
    found = calibrate(log_odds, SECTION)
    (filled,) = (b for b in found.bins if b.n_pairs)
    assert (filled.low, filled.high, filled.n_pairs) == pytest.approx((0.8, 0.85, 10))
    assert filled.accuracy.value == 0.6
    assert (found.ece.value, found.ece.low, found.ece.high) == pytest.approx((0.1326, 0, 0.502), abs=1e-3)
    assert found.brier.value == pytest.approx((6 * 0.04 + 4 * 0.64) / 10, abs=1e-3)


def test_a_well_calibrated_model_has_no_error():
    """A confidence of 80 % with 8 of 10 right has no ECE. A probability of one half has a Brier score of 0.25."""
    assert calibrate(np.log(4) * np.array([1.0] * 8 + [-1.0] * 2), SECTION).ece.value == pytest.approx(0, abs=1e-12)
    assert calibrate(np.zeros(4), SECTION).brier.value == 0.25


@pytest.fixture
def rows():
    """Four pairs. By summed log-probability SFT is right on pair 1 and ties on 2; DPO is right on 1, 2 and 3. The responses of
    pair 3 have 2 and 4 tokens, so DPO's means are -3 and -2 and it is wrong per token. The label of pair 4 disagrees with the
    hidden reward."""
    f32 = pa.float32()
    return pa.table(
        {
            "id": ["1", "2", "3", "4"],
            "source": ["hh/a", "hh/a", "hh/b", "other/c"],
            "true_margin": pa.array([1.0, 2.0, 0.5, -1.0], pa.float64()),
            "conversation": ["1", "2", "3", "4"],
            "prompt": ["p", "p", "p", "p4"],
            "chosen": ["c"] * 4,
            "rejected": ["r"] * 4,
            "n_turns": pa.array([1, 1, 2, 9], pa.int32()),
            "n_prompt_tokens": pa.array([3, 32, 33, 128], pa.int32()),
            "n_chosen_tokens": pa.array([2, 2, 2, 2], pa.int32()),
            "n_rejected_tokens": pa.array([2, 1, 4, 2], pa.int32()),
            "kl_nats_per_token": pa.array([None, 0.1, 0.3, None], pa.float64()),
            "base_chosen_logps": pa.array([-4.0, -4.0, -9.0, -4.0], f32),
            "base_rejected_logps": pa.array([-5.0, -3.0, -8.0, -3.0], f32),
            "sft_chosen_logps": pa.array([-4.0, -4.0, -9.0, -4.0], f32),
            "sft_rejected_logps": pa.array([-5.0, -4.0, -8.0, -3.0], f32),
            "dpo_chosen_logps": pa.array([-4.0, -4.0, -6.0, -5.5], f32),
            "dpo_rejected_logps": pa.array([-6.0, -5.0, -8.0, -4.0], f32),
        }
    )


def test_figures_by_hand(rows):
    figures = summarise(rows, SECTION, {}, beta=0.5)
    base, sft, dpo = (figures.stages[stage] for stage in ("base", "sft", "dpo"))
    assert base.likelihood_accuracy.value == 1 / 4
    assert sft.likelihood_accuracy.value == 1.5 / 4
    assert dpo.likelihood_accuracy.value == 3 / 4
    # per token DPO's means are -2 and -3, -2 and -5, -3 and -2, -2.75 and -2
    assert dpo.normalised_accuracy.value == 2 / 4
    # DPO's margin less SFT's: 2-1, 1-0, 2-(-1), -1.5-(-1)
    assert dpo.implicit_accuracy.value == 3 / 4
    assert (base.implicit_accuracy, sft.implicit_accuracy) == (None, None)
    assert dpo.true_agreement.value == 1.0  # also on pair 4, where the label is wrong
    assert sft.true_agreement.value == (1 + 0.5 + 0 + 1) / 4
    assert dpo.implicit_margin_nats.value == pytest.approx((1 + 1 + 3 - 0.5) / 4)
    assert dpo.chosen_perplexity.value == pytest.approx(np.exp(19.5 / 8))
    assert (dpo.kl_nats_per_token.value, sft.kl_nats_per_token) == (pytest.approx(0.2), None)
    comparison = figures.comparisons["dpo_vs_sft"]
    assert (comparison.n_gained, comparison.n_lost) == (2, 0)
    assert comparison.gain.value == pytest.approx(1.5 / 4)


def test_histograms_count_every_pair_and_have_common_bins(rows):
    figures = summarise(rows, SECTION, {}, beta=0.5)
    sft, dpo = figures.stages["sft"], figures.stages["dpo"]
    assert sum(sft.margins.counts) == sum(dpo.margins.counts) == sum(dpo.implicit_margins.counts) == 4
    assert sft.margins.edges == dpo.margins.edges
    assert sft.margins.quantiles["50"] == -0.5  # of 1, 0, -1, -1


def test_slices_by_hand(rows):
    slices = {(s.by, s.name): s for s in summarise(rows, SECTION, {}).slices}
    assert set(slices) == {
        ("source", "hh"), ("source", "other"),
        ("subset", "hh/a"), ("subset", "hh/b"), ("subset", "other/c"),
        ("n_turns", "1"), ("n_turns", "2"), ("n_turns", "8 or more"),
        ("prompt_tokens", "1-32"), ("prompt_tokens", "33-64"), ("prompt_tokens", "65-128"),
        ("length", "chosen shorter"), ("length", "same length"), ("length", "chosen longer"),
    }  # fmt: skip
    hh = slices["source", "hh"]
    assert (hh.n_pairs, hh.accuracy["sft"].value, hh.accuracy["dpo"].value) == (3, 0.5, 1.0)
    assert hh.gains["dpo_vs_sft"].value == 0.5
    assert slices["n_turns", "1"].n_pairs == slices["prompt_tokens", "1-32"].n_pairs == 2


def test_single_source_gives_no_slice(rows):
    same = rows.set_column(1, "source", pa.array(["a/b"] * 4))
    assert {s.by for s in summarise(same, SECTION, {}).slices} == {"n_turns", "prompt_tokens", "length"}


def test_length_by_hand(rows):
    """The chosen response is equally long in pairs 1 and 4, longer in 2 and shorter in 3: one correct, one wrong, two ties."""
    length = summarise(rows, SECTION, {}).length
    assert length.prefer_longer.value == (0.5 + 1 + 0 + 0.5) / 4
    assert {name: stratum.n_pairs for name, stratum in length.strata.items()} == {
        "chosen_shorter": 1, "same_length": 2, "chosen_longer": 1,
    }  # fmt: skip
    assert length.strata["chosen_shorter"].accuracy["sft"].value == 0
    assert length.strata["chosen_shorter"].implicit_accuracy.value == 1
    # length 0 1 -2 0 has the ranks 2.5 4 1 2.5, the implicit margin 1 1 3 -0.5 the ranks 2.5 2.5 4 1
    assert length.implicit_correlation.value == pytest.approx(-0.5)


def test_most_confident_wrong_pairs_have_their_texts(rows):
    """DPO is wrong on pair 4 only. Its margin is half a nat below SFT's, so with beta 0.5 its confidence is sigmoid(0.25)."""
    (wrong,) = summarise(rows, SECTION, {}, beta=0.5).wrong
    assert (wrong.id, wrong.source, wrong.prompt, wrong.true_margin) == ("4", "other/c", "p4", -1.0)
    assert wrong.margin_nats == -0.5
    assert wrong.confidence == pytest.approx(1 / (1 + np.exp(-0.25)))


def test_the_end_of_a_long_prompt_is_shown(rows):
    long = pa.array(["p", "p" * 1000 + "!", "p", "p4"])
    rows = rows.set_column(rows.column_names.index("prompt"), "prompt", long)
    wrong = summarise(rows.drop_columns(["sft_chosen_logps", "sft_rejected_logps", "dpo_chosen_logps", "dpo_rejected_logps"]), SECTION, {}).wrong  # fmt: skip # noqa: E501
    assert [pair.id for pair in wrong] == ["2", "3", "4"]
    assert [pair.prompt for pair in wrong] == ["p" * 599 + "!", "p", "p4"]


def test_champion_is_compared_with_the_newest_model(rows):
    """The champion also ranks pair 4 correctly, which DPO does not."""
    champion = rows["dpo_chosen_logps"].to_numpy() + np.array([0, 0, 0, 9], np.float32)
    figures = summarise(
        rows.append_column("champion_chosen_logps", pa.array(champion)).append_column(
            "champion_rejected_logps", rows["dpo_rejected_logps"]
        ),
        SECTION,
        {},
    )
    assert list(figures.comparisons) == ["sft_vs_base", "dpo_vs_sft", "dpo_vs_champion"]
    assert (figures.comparisons["dpo_vs_champion"].n_gained, figures.comparisons["dpo_vs_champion"].n_lost) == (0, 1)
    assert figures.stages["champion"].likelihood_accuracy.value == 1


def test_without_a_hidden_reward_there_is_no_agreement(rows):
    index = rows.column_names.index("true_margin")
    figures = summarise(rows.set_column(index, "true_margin", pa.nulls(4, pa.float64())), SECTION, {})
    assert figures.stages["dpo"].true_agreement is None


def test_without_dpo_sft_is_compared_with_the_base(rows):
    figures = summarise(rows.drop_columns(["dpo_chosen_logps", "dpo_rejected_logps"]), SECTION, {})
    assert figures.stages["dpo"] is None
    assert figures.calibration is None
    assert list(figures.comparisons) == ["sft_vs_base"]


# Whole evaluations of tiny models

LENGTHS = Lengths(max_length=96, max_prompt_length=64)


@pytest.fixture(scope="module")
def trained(tiny_base, preferences, tmp_path_factory):
    """Return base, SFT, its reference scores and DPO, trained for a few steps."""
    base, section = tiny_base
    folder = tmp_path_factory.mktemp("evaluated")
    sft = sft_on(
        preferences,
        SftSection(max_steps=3, max_length=96, learning_rate=1e-2),
        TrainingJob(base, section, 0, folder / "sft"),
    )
    reference = reference_on(preferences, sft, base, section, LENGTHS)
    dpo = train_dpo(
        reference,
        sft,
        DpoSection(max_steps=3, max_length=96, max_prompt_length=64, learning_rate=1e-3),
        TrainingJob(base, section, 0, folder / "dpo"),
    )
    return base, section, sft, reference, dpo


def judged(trained, preferences: Preferences, section: EvaluationSection = SECTION, **others) -> Evaluation:
    base, model, sft, reference, dpo = trained
    models = EvaluatedModels(base, model, sft, dpo, others.pop("champion", None))
    data = EvaluationData(preferences, pair_tokens(preferences, base, model), reference, **others)
    return evaluate(models, data, section)


def test_batch_size_does_not_change_the_figures(trained, preferences):
    one_by_one = judged(trained, preferences, EvaluationSection(tokens_per_batch=1))
    together = judged(trained, preferences, EvaluationSection(tokens_per_batch=8192))
    for name in together.pairs.column_names:
        if name.endswith("_logps"):
            np.testing.assert_allclose(one_by_one.pairs[name], together.pairs[name], atol=1e-4)
    for stage in ("base", "sft", "dpo"):
        ours, theirs = one_by_one.figures.stages[stage], together.figures.stages[stage]
        assert ours.likelihood_accuracy == theirs.likelihood_accuracy
        assert ours.normalised_accuracy == theirs.normalised_accuracy
    assert one_by_one.pairs["kl_nats_per_token"] == together.pairs["kl_nats_per_token"]


def test_the_same_input_gives_the_same_output(trained, preferences):
    assert judged(trained, preferences).figures == judged(trained, preferences).figures


def test_kl_is_zero_for_the_reference_itself_and_not_for_dpo(trained, preferences):
    base, model, sft, reference, _ = trained
    same = judged((base, model, sft, reference, sft), preferences)
    assert same.figures.stages["dpo"].kl_nats_per_token.value == 0
    assert judged(trained, preferences).figures.stages["dpo"].kl_nats_per_token.low > 0


def test_kl_equals_torchs_over_the_whole_vocabulary(trained, preferences):
    """Compare with torch's KL at every position of one pair."""
    import torch

    base, model, sft, _, dpo = trained
    rows = [{"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10]}]
    from datasets import Dataset

    kl = NextTokenKL(Dataset.from_list(rows), 1, seed=0)
    policy, reference = load_model(base, model, dpo), load_model(base, model, sft)
    kl.remember(reference, model)
    (found,) = kl.measure(policy, model)
    expected = []
    for response in ([8, 9], [10]):
        ids = torch.tensor([[5, 6, 7, *response]])
        with torch.no_grad():
            p, q = (m.eval()(input_ids=ids).logits[0, 2:-1].log_softmax(-1) for m in (policy, reference))
        expected += torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).tolist()
    assert len(expected) == 3
    assert found == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_the_champion_is_scored_on_the_same_pairs(trained, preferences, tmp_path):
    """The champion is another training of the same base. DPO compared with itself has no gain and no loss."""
    base, model, _, _, dpo = trained
    other = sft_on(
        preferences,
        SftSection(max_steps=1, max_length=96, learning_rate=1e-3),
        TrainingJob(base, model, 1, tmp_path / "o"),
    )
    found = judged(trained, preferences, champion=other)
    assert found.figures.opponent == "champion"
    assert found.figures.digests["champion"] == other.digest
    alone = judged((base, model, other, None, None), preferences)
    np.testing.assert_allclose(found.pairs["champion_chosen_logps"], alone.pairs["sft_chosen_logps"], atol=1e-4)
    itself = judged(trained, preferences, champion=dpo).figures.comparisons["dpo_vs_champion"]
    assert (itself.gain.value, itself.p_value) == (0, 1)


def test_champion_with_another_base_is_scored(trained, preferences, tmp_path):
    """Its manifest names a base that this run does not have. Full weights do not need it."""
    _, _, sft, _, _ = trained
    elsewhere = Base(id="some/other-base", revision="abc", digest="hub:some/other-base@abc")
    foreign = Checkpoint(sft.path, sft.manifest.model_copy(update={"base": elsewhere, "digest": "f" * 64}))
    pairs = judged(trained, preferences, champion=foreign).pairs
    np.testing.assert_allclose(pairs["champion_chosen_logps"], pairs["sft_chosen_logps"], atol=1e-4)
    assert pairs["champion_n_chosen_tokens"] == pairs["n_chosen_tokens"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


@pytest.fixture
def extra(tmp_path, preferences):
    """Return two sets. The second pair of the first one has a training prompt."""
    known = preferences.train[0]["prompt"][0]["content"]
    first = [
        {"prompt": "What is slow?", "chosen": "the printer", "rejected": "the light"},
        {"prompt": known.upper(), "chosen": "yes", "rejected": "no"},
    ]
    second = [{"prompt": f"Number {i}?", "chosen": "restart it", "rejected": "wait"} for i in range(5)]
    (tmp_path / "bench").mkdir()
    return [write(tmp_path / "bench" / "one.jsonl", first), write(tmp_path / "bench" / "two.jsonl", second)]


def test_additional_sets_are_evaluated_and_survive_saving(trained, preferences, extra, tmp_path):
    sets = load_pair_sets(extra, preferences, DataSection(max_drop_share=0.5))
    assert sets.sets["bench/one"].dropped == {"trained_on": 1}
    (tmp_path / "sets").mkdir()
    sets.save(tmp_path / "sets")
    back = PairSets.load(tmp_path / "sets")
    assert {name: found.digest for name, found in back.sets.items()} == {n: f.digest for n, f in sets.sets.items()}
    found = judged(trained, preferences, sets=back)
    assert {name: figures.n_pairs for name, figures in found.figures.sets.items()} == {"bench/one": 1, "bench/two": 5}
    assert found.figures.n_pairs == 8
    assert found.figures.sets["bench/two"].stages["dpo"].implicit_accuracy is not None
    (tmp_path / "evaluation").mkdir()
    found.save(tmp_path / "evaluation")
    loaded = Evaluation.load(tmp_path / "evaluation")
    assert loaded.figures == found.figures
    assert loaded.sets["bench/two"] == found.sets["bench/two"]


def test_set_with_only_training_prompts_is_refused(preferences, extra):
    with pytest.raises(UserError, match=r"1 of 2 rows \(50\.0%\) cannot be used(.|\n)*trained_on"):
        load_pair_sets(extra, preferences, DataSection())


def test_sets_with_equal_names_are_refused(preferences, extra):
    with pytest.raises(UserError, match="two sets have the name 'bench/two'"):
        load_pair_sets([extra[1], extra[1]], preferences, DataSection())


def test_the_name_of_a_set_is_short():
    assert set_name(Source(path="../shared/data/llmbar/Natural.jsonl.gz")) == "llmbar/Natural"
    assert set_name(Source(path="bench.jsonl")) == set_name(Source(path=str(Path("bench.jsonl").absolute())))
    assert set_name(Source(path="org/name", subset="hard")) == "org/name/hard"


def test_error_without_pairs_names_the_setting_to_raise(trained, preferences):
    base, model, sft, _, _ = trained
    tokens = pair_tokens(preferences, base, model, Lengths(max_length=2, max_prompt_length=2))
    with pytest.raises(UserError, match=r"none of the 8 test pairs can be used .*raise dpo.max_length"):
        evaluate(EvaluatedModels(base, model, sft), EvaluationData(preferences, tokens), SECTION)


def test_pairs_keep_their_texts(trained, preferences):
    row = judged(trained, preferences).pairs.to_pylist()[0]
    pair = next(p for p in preferences.test if p["id"] == row["id"])
    assert row["prompt"] == f"user: {pair['prompt'][0]['content']}"
    assert row["chosen"] == pair["chosen"][0]["content"]
    assert row["n_turns"] == 1


def test_the_number_of_bootstraps_does_not_depend_on_the_number_of_pairs(monkeypatch):
    """Intervals of thousands of pairs must not cost more than scoring them."""
    n_rows = []

    def counted(numerator, denominator, section, clusters=None):
        n_rows.append(len(numerator))
        return bootstrap_ratio(numerator, denominator, section, clusters)

    monkeypatch.setattr(intervals, "bootstrap_ratio", counted)
    monkeypatch.setattr(statistics, "bootstrap_ratio", counted)
    generator, section = np.random.default_rng(0), EvaluationSection(n_bootstrap=100)
    logps = [f"{s}_{w}_logps" for s in ("base", "sft", "dpo", "champion") for w in ("chosen", "rejected")]
    counts = [f"n_{name}" for name in ("turns", "prompt_tokens", "chosen_tokens", "rejected_tokens")]
    found = {}
    for n in (500, 5000):
        n_rows.clear()
        table = {
            "id": [str(i) for i in range(n)],
            "source": [f"s/{i % 4}" for i in range(n)],
            "true_margin": pa.nulls(n, pa.float64()),
            "conversation": [str(i) for i in range(n)],
            **{name: ["x"] * n for name in ("prompt", "chosen", "rejected")},
            **{name: generator.integers(1, 20, n) for name in counts},
            **{name: -generator.exponential(50, n) for name in logps},
        }
        summarise(pa.table(table), section, {}, beta=0.1)
        assert max(n_rows) == n
        found[n] = len(n_rows)
    assert found[500] == found[5000]
