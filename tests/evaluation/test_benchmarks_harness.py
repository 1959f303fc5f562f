"""Benchmarks through lm-evaluation-harness: right values by hand, without network, on models that are already loaded."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch

from posttrain.config import BenchmarkSection, EvaluationSection
from posttrain.errors import UserError

pytest.importorskip("lm_eval", reason="the extra `benchmarks` is not installed")

from posttrain.evaluation.benchmarks import harness
from posttrain.evaluation.benchmarks.benchmark_figures import compare_benchmarks
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkScores
from posttrain.evaluation.benchmarks.harness import load_items
from posttrain.evaluation.benchmarks.run_benchmarks import Candidate, score_benchmarks
from posttrain.models.loading import load_chat, load_model

CHOICES = """task: lengths
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: gold
doc_to_choice: choices
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GSM8K = """task: gsm8k_local
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl.gz, test: {folder}/test.jsonl.gz}}}}
fewshot_split: train
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 1
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 8}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [",", "(?s).*#### "]}}
filter_list:
  - {{name: strict-match, filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}, {{function: take_first}}]}}
"""


@pytest.fixture
def lengths_task(tmp_path):
    """Five questions whose answers differ in length only. The shortest one is right in three of them."""
    rows = [
        {"question": "Short?", "choices": ["a", "bbbbbb"], "gold": 0},
        {"question": "Also short?", "choices": ["cccccc", "d"], "gold": 1},
        {"question": "Shorter?", "choices": ["eeeeee", "f"], "gold": 1},
        {"question": "Long?", "choices": ["g", "hhhhhh"], "gold": 1},
        {"question": "Long too?", "choices": ["iiiiii", "j"], "gold": 0},
    ]
    (tmp_path / "lengths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lengths.yaml").write_text(CHOICES.format(data=tmp_path / "lengths.jsonl"))
    return str(tmp_path / "lengths.yaml")


@pytest.fixture
def candidate(tiny_base):
    """A model that finds every token equally likely, so that the answer with the fewest tokens is the most likely."""
    base, section = tiny_base
    model = load_model(base, section)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return Candidate(model, load_chat(base, section), section)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Data comes from local files alone."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, which takes a second


def test_multiple_choice_by_hand(lengths_task, candidate):
    """Equally likely tokens: the shortest answer wins, right in 3 of 5; per byte all tie, and the first one wins: 2 of 5."""
    items = load_items([BenchmarkSection(task=lengths_task)])
    found = score_benchmarks(items, candidate, 8192)["lengths"]
    assert found.metrics["acc,none"].items == [1, 1, 1, 0, 0]
    assert found.metrics["acc,none"].value == pytest.approx(0.6)
    assert found.metrics["acc,none"].std_error == pytest.approx((0.6 * 0.4 / 4) ** 0.5)  # of the sample: n - 1
    assert found.n_cut == 0


def test_scores_do_not_depend_on_the_batch(lengths_task, tiny_base):
    base, section = tiny_base
    candidate = Candidate(load_model(base, section), load_chat(base, section), section)
    items = load_items([BenchmarkSection(task=lengths_task)])
    assert score_benchmarks(items, candidate, 1) == score_benchmarks(items, candidate, 8192)


def test_limit_and_a_changed_file_change_the_digest(lengths_task, tmp_path, candidate):
    section = BenchmarkSection(task=lengths_task)
    items, again = load_items([section]), load_items([section])
    assert items == again
    two = load_items([section.model_copy(update={"limit": 2})])
    assert two.tasks["lengths"].documents == items.tasks["lengths"].documents[:2]
    assert two.tasks["lengths"].digest != items.tasks["lengths"].digest
    data = tmp_path / "lengths.jsonl"
    data.write_text(data.read_text().replace("Short?", "Brief?"))
    assert load_items([section]).tasks["lengths"].digest != items.tasks["lengths"].digest
    with pytest.raises(UserError, match="the items of lengths changed while the run was going on"):
        score_benchmarks(items, candidate, 8192)


def test_files_that_a_task_uses_change_the_digest(lengths_task, tmp_path):
    (tmp_path / "short.yaml").write_text(f"include: {lengths_task}\ntask: short\nprocess_docs: !function pick.first\n")
    (tmp_path / "pick.py").write_text("def first(docs):\n    return docs.select([0])\n")
    section = BenchmarkSection(task=str(tmp_path / "short.yaml"))
    before = load_items([section]).tasks["short"]
    assert len(before.documents) == 1
    (tmp_path / "run.yaml").write_text("a: file that has nothing to do with it")
    assert load_items([section]).tasks["short"] == before
    for file in ("pick.py", "lengths.yaml"):
        with (tmp_path / file).open("a") as end:
            end.write("# the same\n")
        after = load_items([section]).tasks["short"]
        assert (after.documents, after.digest != before.digest) == (before.documents, True)
        before = after


def test_gsm8k_from_local_files(shared_data, tmp_path, candidate):
    """A model that cannot count solves none. Prompts that its context cuts are counted."""
    if not (shared_data / "gsm8k" / "test.jsonl.gz").is_file():
        pytest.skip("the GSM8K files are not there")
    for split in ("train", "test"):
        with (
            gzip.open(shared_data / "gsm8k" / f"{split}.jsonl.gz", "rt") as file,
            gzip.open(tmp_path / f"{split}.jsonl.gz", "wt") as small,
        ):
            small.writelines(line for line, _ in zip(file, range(20), strict=False))
    (tmp_path / "gsm8k.yaml").write_text(GSM8K.format(folder=tmp_path))
    candidate.model.config.max_position_embeddings = 64
    items = load_items([BenchmarkSection(task=str(tmp_path / "gsm8k.yaml"), limit=3)])
    found = score_benchmarks(items, candidate, 8192)["gsm8k"]
    assert found.metrics["exact_match,strict-match"].items == [0, 0, 0]
    assert found.n_cut == 3


def test_unknown_task_names_similar_ones(monkeypatch):
    names = SimpleNamespace(all_tasks=["gsm8k", "arc_easy"])
    monkeypatch.setattr(harness, "task_manager", lambda with_defaults: names)  # reading all tasks takes seconds
    with pytest.raises(UserError, match=r"has no task 'gsm9k'; similar ones: gsm8k"):
        load_items([BenchmarkSection(task="gsm9k")])
    with pytest.raises(UserError, match=r"absent.yaml does not exist"):
        load_items([BenchmarkSection(task="absent.yaml")])


def test_wrong_metric_names_the_others(lengths_task, candidate):
    section = BenchmarkSection(task=lengths_task, metric="exact_match")
    items = load_items([section])
    scores = {"base": BenchmarkScores(digest="b", tasks=score_benchmarks(items, candidate, 8192))}
    with pytest.raises(UserError, match=r"has no metric 'exact_match' .* one of acc,none, acc_norm,none"):
        compare_benchmarks(items, scores, EvaluationSection())
