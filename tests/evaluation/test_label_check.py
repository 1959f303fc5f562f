"""Label check: every training pair is scored by a model that has not seen its prompt, and swapped labels are found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import Dataset, concatenate_datasets
from support.data_files import write_pairs
from support.pairs import make_pairs
from support.stages import LENGTHS

from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.cli.main import main
from posttrain.config import RunConfig, load_config
from posttrain.data.loader import load_preferences
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.label_check import cross_fitting
from posttrain.evaluation.label_check.cross_fitting import CheckInputs, check_labels, cost
from posttrain.evaluation.label_check.noise import LabelNoise, estimate_noise
from posttrain.models.base import resolve_base
from posttrain.models.loading import load_chat
from posttrain.reporting.pages.label_page import noise_words


def drawn(share: float, n: int = 4000, scale: float = 2.0) -> np.ndarray:
    """Return margins towards labels drawn as the model of labels says, of which a share is swapped afterwards."""
    rng = np.random.default_rng(3)
    margins = np.abs(rng.normal(0, 2, n))
    kept = rng.random(n) < 1 / (1 + np.exp(-scale * margins))
    return np.where(kept ^ (rng.random(n) < share), margins, -margins)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_share_of_swapped_labels_is_told_from_disagreement_on_small_margins(share):
    found = estimate_noise(drawn(share), 0.95)
    assert found is not None
    assert found.share.low <= share <= found.share.high < share + 0.05
    assert found.share.value == pytest.approx(share, abs=0.02)
    assert found.scale == pytest.approx(2, rel=0.25)


def test_margins_of_one_size_cannot_tell_swapped_labels_from_disagreement():
    """90 of 100 labels agree. Either 10 % are swapped or the margin means 90 %, or something in between."""
    found = estimate_noise(np.repeat([1.0, -1.0], [900, 100]), 0.95)
    assert found is not None
    assert found.share.low == 0
    assert found.share.high == pytest.approx(0.12, abs=0.01)  # 10 % and two standard errors of 0.95 %


def test_margins_without_meaning_give_no_estimate():
    noise = estimate_noise(np.random.default_rng(0).normal(0, 1, 500), 0.95)
    assert noise is not None
    assert "cannot be told" in noise_words(noise, "test pairs")
    assert estimate_noise(np.ones(10), 0.95) is None
    assert estimate_noise(np.zeros(100), 0.95) is None


def test_probability_of_a_swap_by_hand():
    """sigmoid(2) = 0.8808: 0.1 x 0.8808 / (0.1 x 0.8808 + 0.9 x 0.1192) = 0.4509 at a margin of -2, 0.0149 at 2."""
    noise = LabelNoise(share=Estimate(value=0.1, low=0.05, high=0.15), scale=1.0, n_pairs=100)
    assert noise.p_swapped(np.array([-2.0, 2.0])) == pytest.approx([0.4509, 0.0148], abs=1e-4)


@pytest.fixture
def inputs(tiny_base):
    """Two pairs for each of 12 prompts."""
    base, model = tiny_base
    once = make_pairs(12, seed=2)
    again = once.remove_columns("id").add_column("id", [f"again-{i}" for i in range(12)])
    preferences = Preferences(concatenate_datasets([once, again]), make_pairs(2, seed=3), make_pairs(2, seed=4))
    sections = {
        "model": model.model_dump(),
        "data": {"sources": [{"path": "unused.jsonl"}]},
        "sft": {"max_steps": 1, "max_length": 96},
        "dpo": {"max_steps": 2, "learning_rate": 1e-2, **LENGTHS.model_dump()},
    }
    config = RunConfig.model_validate(sections)
    tokens = tokenise_data(load_chat(base, model), preferences, None, TokeniseSettings(LENGTHS, 96))
    return preferences, CheckInputs(config, base, tokens.pairs, tokens.sft, n_folds=3)


def test_no_pair_is_scored_by_a_model_that_has_seen_its_prompt(inputs, tmp_path, monkeypatch):
    preferences, check = inputs
    seen = []

    def spy(reference, *args):
        seen.append(set(map(tuple, reference.rows("train")["prompt_ids"])))
        return train_dpo(reference, *args)

    train_dpo = cross_fitting.train_dpo
    monkeypatch.setattr(cross_fitting, "train_dpo", spy)
    found = check_labels(check, tmp_path)
    table = found.table.to_pydict()
    assert sorted(table["id"]) == sorted(preferences.train["id"])
    assert table["margin_nats"] == sorted(table["margin_nats"])
    assert any(table["margin_nats"])
    rows = check.tokens.tables["train"].to_pylist()
    prompts = {row["id"]: tuple(row["prompt_ids"]) for row in rows}
    for row_id, fold in zip(table["id"], table["fold"], strict=True):
        assert prompts[row_id] not in seen[fold]
    assert all(seen[0] | seen[1] == set(prompts.values()) for _ in seen)


def test_an_interrupted_check_goes_on_with_the_next_fold(inputs, tmp_path, monkeypatch):
    _, check = inputs
    whole = check_labels(check, tmp_path / "whole")
    train_dpo, folds = cross_fitting.train_dpo, []

    def interrupted(reference, sft, dpo, job):
        folds.append(job.dest.name)
        if len(folds) == 2:
            raise KeyboardInterrupt
        return train_dpo(reference, sft, dpo, job)

    monkeypatch.setattr(cross_fitting, "train_dpo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_labels(check, tmp_path / "part")
    monkeypatch.setattr(cross_fitting, "train_sft", None)
    monkeypatch.setattr(cross_fitting, "score_reference", None)
    assert check_labels(check, tmp_path / "part").table.equals(whole.table)
    assert folds == ["dpo-0", "dpo-1", "dpo-1", "dpo-2"]
    monkeypatch.setattr(cross_fitting, "train_dpo", None)
    assert check_labels(check, tmp_path / "part").table.equals(whole.table)
    assert sorted(path.name for path in (tmp_path / "part" / check.key[:32]).iterdir()) == [
        "fold-0.parquet", "fold-1.parquet", "fold-2.parquet",
    ]  # fmt: skip


def test_too_few_prompts_for_the_folds_are_refused(inputs, tmp_path):
    with pytest.raises(UserError, match="too few different prompts for 20 folds"):
        check_labels(replace(inputs[1], n_folds=20), tmp_path)


def test_cost_counts_the_steps_of_every_training(inputs):
    """24 pairs; 3 folds of 2 steps each."""
    assert cost(inputs[1]) == [
        "SFT on 24 rows (1 steps)", "DPO 3 times on about 16 pairs (2 steps each)", "24 pairs scored twice"
    ]  # fmt: skip


@pytest.mark.slow
def test_command_writes_pairs_that_data_sources_can_read(tiny_folder, tmp_path):
    sources = {"sources": [{"path": str(write_pairs(tmp_path / "pairs.jsonl"))}], "test_size": 0.3}
    config = {
        "model": {"base": str(tiny_folder)},
        "data": sources,
        "sft": {"max_steps": 1, "max_length": 64},
        "dpo": {"max_steps": 1, "max_length": 64, "max_prompt_length": 48},
    }
    (tmp_path / "run.yaml").write_text(json.dumps({"parameters": {"config": config}}))
    out, page = tmp_path / "labels.parquet", tmp_path / "labels.html"
    arguments = [
        "label-check",
        str(tmp_path / "run.yaml"),
        "--folds",
        "2",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(out),
    ]
    refused = CliRunner().invoke(main, arguments, input="n\n")
    assert refused.exit_code == 1
    assert "DPO 2 times" in refused.output
    assert not (tmp_path / "work").exists()
    result = CliRunner().invoke(main, [*arguments, "--html", str(page), "--yes"])
    assert result.exit_code == 0, result.output
    assert "<h2>Most suspicious labels</h2>" in page.read_text()
    written = pq.read_table(out)
    assert {"id", "prompt", "chosen", "rejected", "margin_nats", "p_swapped", "fold"} <= set(written.column_names)
    again = load_config(tmp_path / "run.yaml", [f"data.sources.0.path={out}", "data.seed=1"])
    kept, _ = load_preferences(again.data)
    assert kept.n_pairs == written.num_rows


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_swapped_labels_of_the_demo_are_found(tmp_path):
    """Of 10 % planted swaps, at least 60 % of the 5 % most suspicious pairs are swapped."""
    config = load_config(Path("configs/demo.yaml"))
    preferences, _ = load_preferences(config.data)
    n = len(preferences.train)
    swapped = np.isin(np.arange(n), np.random.default_rng(0).choice(n, n // 10, replace=False))
    rows = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if swap else row
        for row, swap in zip(preferences.train.to_list(), swapped, strict=True)
    ]
    train = Dataset.from_list(rows, features=preferences.train.features)
    base = resolve_base(config.model)
    data = Preferences(train, preferences.validation, preferences.test)
    settings = TokeniseSettings(config.dpo.lengths, config.sft.max_length)
    tokens = tokenise_data(load_chat(base, config.model), data, None, settings)
    found = check_labels(CheckInputs(config, base, tokens.pairs, tokens.sft), tmp_path)
    is_swapped = dict(zip(train["id"], swapped.tolist(), strict=True))
    ranked = [is_swapped[row_id] for row_id in found.table["id"].to_pylist()]
    assert np.mean(ranked[: n // 20]) >= 0.6
    assert found.noise is not None
    assert found.noise.share.low <= 0.1 <= found.noise.share.high
