"""A step's digest changes with the code and the packages that can change its result, and with nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse
from zenml.utils import source_utils

from materializers import BaseModelMaterializer, ModelSettingsMaterializer
from pipelines.dpo import dpo_pipeline
from posttrain.config import ModelSection
from posttrain.models.base import resolve_base
from posttrain.orchestration.caching import cache_key
from posttrain.orchestration.caching.cache_key import digest_of_step, relevant_versions, step_digest
from posttrain.orchestration.caching.source_graph import SourceGraph
from posttrain.orchestration.caching.step_keys import cache_policy
from posttrain.orchestration.project import step_names

pytestmark = pytest.mark.slow

PACKAGES = ("posttrain", "steps", "materializers")
TRAININGS = {"train_sft", "score_reference", "train_dpo"}
JUDGING = {"evaluate", "promote", "report"}


def copied(folder: Path) -> dict[str, Path]:
    """A copy of the project's code, by package."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return {package: folder / package for package in PACKAGES}


def digests(folders: dict[str, Path]) -> dict[str, str]:
    """The digest of every step."""
    return {name: digest_of_step(f"steps.{name}", folders) for name in step_names(folders["steps"].parent)}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The digests of the code as it is."""
    return digests({package: ROOT / package for package in PACKAGES})


@pytest.fixture
def changed(tmp_path: Path, before: dict[str, str]) -> Callable[[Callable[[Path], Any]], set[str]]:
    """Takes an edit of a copy of the project, and returns the steps whose digest it changes."""

    def by(edit: Callable[[Path], Any]) -> set[str]:
        folders = copied(tmp_path)
        edit(tmp_path)
        after = digests(folders)
        return {name for name, digest in after.items() if before.get(name) != digest}

    return by


def edit(place: Path, line: str = "edited = 1") -> None:
    """Append a line to a module, or to every module of a package."""
    for path in [place] if place.is_file() else place.rglob("*.py"):
        path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_copy_elsewhere_has_the_same_digests(changed: Any) -> None:
    assert changed(lambda root: None) == set()


@pytest.mark.parametrize("package", ["reporting", "feedback", "serving", "cli"])
def test_code_that_shows_or_serves_results_leaves_every_training_cached(changed: Any, package: str) -> None:
    steps = changed(lambda root: edit(root / "posttrain" / package))
    assert not {name for name in steps if name.startswith("train_")}
    assert not steps & (TRAININGS | {"generate", "evaluate", "promote"})
    assert ("report" in steps) == (package == "reporting")


@pytest.mark.parametrize("module", ["posttrain/tracking", "posttrain/orchestration/running_step/step_tracking.py"])
def test_code_that_only_publishes_changes_nothing(changed: Any, module: str) -> None:
    assert not changed(lambda root: edit(root / module)) & (TRAININGS | JUDGING)


def test_every_module_that_is_not_followed_exists() -> None:
    """Else its code would count again, unnoticed, after it has been renamed."""
    graph = SourceGraph({package: ROOT / package for package in PACKAGES})
    assert [name for name in cache_key.NOT_FOLLOWED if graph.module(name) is None] == []


def test_code_of_the_evaluation_leaves_trainings_cached(changed: Any) -> None:
    steps = changed(lambda root: edit(root / "posttrain" / "evaluation"))
    assert steps >= JUDGING
    assert not steps & TRAININGS


def test_code_of_the_forward_pass_reruns_trainings(changed: Any) -> None:
    assert changed(lambda root: edit(root / "posttrain" / "forward")) >= TRAININGS


def test_code_of_one_training_leaves_the_other_cached(changed: Any) -> None:
    assert changed(lambda root: edit(root / "posttrain/training/sft.py")) & TRAININGS == {"train_sft"}


def test_a_step_does_not_depend_on_the_code_of_another(changed: Any) -> None:
    assert changed(lambda root: edit(root / "steps" / "train_dpo.py")) == {"train_dpo"}


def test_the_materializers_of_inputs_and_outputs_count(changed: Any) -> None:
    steps = changed(lambda root: edit(root / "materializers" / "checkpoint.py"))
    assert steps >= TRAININGS
    assert not steps & {"load_preferences", "resolve_base", "promote"}


def test_the_orchestration_s_own_resume_logic_reruns_trainings(changed: Any) -> None:
    steps = changed(lambda root: edit(root / "posttrain/orchestration/running_step/step_training.py"))
    assert {"train_sft", "train_dpo"} <= steps
    assert "evaluate" not in steps


@pytest.mark.parametrize(
    "line", ["# a comment", '"""A text that stands alone."""', "", "if TYPE_CHECKING:\n    import torch"]
)
def test_what_cannot_change_a_result_changes_no_digest(changed: Any, line: str) -> None:
    def everywhere(root: Path) -> None:
        for package in PACKAGES:
            edit(root / package, line)

    assert changed(everywhere) == set()


def test_docstrings_and_descriptions_of_settings_change_no_digest(changed: Any) -> None:
    def texts(root: Path) -> None:
        path = root / "posttrain/config/sections/training_sections.py"
        replace(path, '"passes over the training data', '"epochs over the training data')
        replace(path, '"""Settings that all trainings share."""', '"""Settings of SFT and DPO."""')

    assert changed(texts) == set()


def test_a_default_of_a_setting_changes_the_digest(changed: Any) -> None:
    path = "posttrain/config/sections/training_sections.py"
    assert (
        changed(lambda root: replace(root / path, "adam_beta1: float = Field(0.9,", "adam_beta1: float = Field(0.8,"))
        >= TRAININGS
    )


def test_a_new_layout_concerns_the_loading_of_data_only(changed: Any) -> None:
    """It is imported by a computed name."""
    steps = changed(lambda root: (root / "posttrain/data/formats/preference/new.py").write_text("x = 1\n"))
    assert "load_preferences" in steps
    assert {name for name in steps if not name.startswith("load_")} == {"collect"}  # it reads prompts


def test_a_template_is_part_of_the_code_that_reads_it(changed: Any) -> None:
    def template(root: Path) -> None:
        folder = root / "posttrain" / "reporting" / "templates"
        folder.mkdir(exist_ok=True)
        (folder / "new.html").write_text("<p>")

    steps = changed(template)
    assert "report" in steps
    assert not steps & TRAININGS


def test_only_packages_that_can_change_a_result_count() -> None:
    graph = SourceGraph({package: ROOT / package for package in PACKAGES}, tuple(cache_key.NOT_FOLLOWED))
    versions = relevant_versions(graph.reached("steps.train_dpo").packages)
    assert versions.keys() >= {
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "trl",
        "peft",
        "accelerate",
        "numpy",
    }
    assert not versions.keys() & {"zenml", "mlflow", "click", "rich", "tqdm", "boto3", "matplotlib", "requests"}


def test_a_new_version_of_a_package_reruns_what_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {package: ROOT / package for package in PACKAGES}
    before = digests(folders)
    version = cache_key._version
    monkeypatch.setattr(cache_key, "_version", lambda name: "99" if name == "trl" else version(name))
    steps = {name for name, digest in digests(folders).items() if before[name] != digest}
    assert steps >= TRAININGS
    assert "load_preferences" not in steps


@pytest.mark.parametrize(("here", "there", "same"), [("2.13.0+cpu", "2.13.0+cu130", True), ("2.13.0", "2.12.0", False)])
def test_builds_of_one_version_count_as_the_same(
    monkeypatch: pytest.MonkeyPatch, here: str, there: str, same: bool
) -> None:
    def versions(version: str) -> dict[str, str]:
        monkeypatch.setattr(cache_key, "_version", lambda name: version)
        return relevant_versions({"torch"})

    assert (versions(here) == versions(there)) == same


SOURCES = {
    "app/__init__.py": "from app.used import f as g\nfrom app import unused\n",
    "app/used.py": "def f(): pass\n",
    "app/unused.py": "",
    "app/lazy.py": "def run():\n    from . import used\n    import app.deep.leaf\n",
    "app/deep/__init__.py": "REGISTERED = []\nREGISTERED.append(1)\n",
    "app/deep/leaf.py": "import json, torch.nn\n",
    "app/types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import app.unused\nelse:\n    import app.used\n",
    "app/named.py": "import subprocess\nsubprocess.run(['python', '-m', 'app.used'])\n",
    "app/defined.py": "from app.own import here\n",
    "app/own/__init__.py": "from app.used import f\ndef here(): pass\n",
}


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("from app import g", {"app.used"}),
        ("from app import used", {"app.used"}),
        ("import app.lazy", {"app.lazy", "app.used", "app.deep", "app.deep.leaf"}),
        ("import app.types", {"app.types", "app.used"}),
        ("import app.named", {"app.named", "app.used"}),
        ("import app.defined", {"app.defined", "app.own", "app.used"}),
        ("from app import *", {"app", "app.used", "app.unused"}),
        ("from app.nothing import here", set()),
    ],
)
def test_imports_are_followed_to_what_they_use(tmp_path: Path, code: str, modules: set[str]) -> None:
    """Names that a package passes on lead to their own modules; functions, `python -m` and `else` count, type checks do not."""
    for name, text in {**SOURCES, "start.py": code}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    reached = SourceGraph({"app": tmp_path / "app", "start": tmp_path / "start"}).reached("start")
    assert reached.modules - {"start"} == modules
    assert reached.packages == ({"torch"} if "app.deep.leaf" in modules else set())


def test_zenml_finds_the_digest_of_a_step_by_its_policy() -> None:
    policy = cache_policy("steps.train_sft")
    stored = type(policy).model_validate_json(policy.model_dump_json())
    assert stored.cache_func is not None
    assert source_utils.load(stored.cache_func)() == step_digest("steps.train_sft")
    assert not stored.include_step_code


def test_settings_mean_the_same_wherever_the_model_lies(tmp_path: Path, tiny_folder: Path, monkeypatch: Any) -> None:
    shutil.copytree(tiny_folder, tmp_path / "moved")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    sections = [
        ModelSection(base=base, chat_template=template)
        for base, template in [
            (str(tiny_folder), f"{tmp_path}/t.jinja"),
            ("moved", "t.jinja"),
            ("./moved", "./t.jinja"),
        ]
    ]
    bases = [resolve_base(section) for section in sections]
    assert bases[1].id == bases[2].id == str(tmp_path / "moved")
    assert len({BaseModelMaterializer("x").compute_content_hash(base) for base in bases}) == 1
    settings = ModelSettingsMaterializer("x")
    (same,) = {settings.compute_content_hash(section) for section in sections}
    assert settings.compute_content_hash(sections[0].model_copy(update={"chat_template": "chatml"})) != same


def worked(done: PipelineRunResponse | None) -> set[str]:
    assert done is not None
    steps = {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}
    return steps - {"load_preferences", "load_instructions", "resolve_base", "find_champion", "conclude"}


def test_only_steps_that_use_the_edited_code_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "name": "edited",
        "seed": 7,  # other tests of this session share the cache
        "data": {"sources": [{"path": "demo", "limit": 200}], "test_size": 0.2},
        "sft": {"max_steps": 1, "batch_size": 2},
        "dpo": {"max_steps": 1, "batch_size": 2},
        "evaluation": {"generations": {"n": 4, "max_new_tokens": 4}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"parameters": {"config": config}}))

    def after(place: str, copy: str) -> set[str]:
        folders = copied(tmp_path / copy)
        edit(tmp_path / copy / place)
        monkeypatch.setattr(cache_key, "step_digest", lambda module: digest_of_step(module, folders))
        return worked(dpo_pipeline.with_options(config_path=str(path))())

    assert worked(dpo_pipeline.with_options(config_path=str(path))()) >= TRAININGS | JUDGING
    shown = after("posttrain/reporting", "a")
    assert "report" in shown
    assert not shown & (TRAININGS | {"generate", "evaluate", "promote"})
    judged = after("posttrain/evaluation/scoring.py", "b")
    assert {"evaluate", "report"} <= judged
    assert not judged & TRAININGS
    assert {"train_sft", "score_reference", "train_dpo"} <= after("posttrain/forward", "c")


def test_the_key_does_not_depend_on_folder_or_path(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files by relative and absolute paths, from other folders, and after all of them were moved."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    shutil.copytree(tiny_folder, project / "model")
    pairs = [{"prompt": f"Thing {i}?", "chosen": f"Restart it {i} times.", "rejected": "No."} for i in range(60)]
    (project / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    bench = [{**pair, "prompt": f"{pair['prompt']} Why?"} for pair in pairs[:20]]
    (project / "data" / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench))
    rows = [{"instruction": f"Mend {i}.", "output": f"Restart {i}."} for i in range(20)]
    (project / "data" / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "t.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )

    def run(at: Callable[[str], str]) -> set[str]:
        config = {
            "name": "places",
            "model": {"base": at("model"), "chat_template": at("t.jinja"), "precision": "fp32"},
            "data": {"sources": [at("data/pairs.jsonl")], "test_size": 0.3, "checks": {"near_duplicate": "keep"}},
            "sft": {"dataset": at("data/instructions.jsonl"), "max_steps": 1, "batch_size": 2},
            "dpo": {"max_steps": 1, "batch_size": 2},
            "evaluation": {"generations": {"n": 2, "max_new_tokens": 2}, "sets": [at("data/bench.jsonl")]},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"parameters": {"config": config}}))
        return worked(dpo_pipeline.with_options(config_path=os.path.relpath(path))()) - {"load_pair_sets", "report"}

    monkeypatch.chdir(ROOT)
    assert run(lambda name: os.path.relpath(project / name)) >= TRAININGS
    assert run(lambda name: str(project / name)) == set()
    monkeypatch.chdir(ROOT / "configs")
    assert run(lambda name: os.path.relpath(project / name)) == set()
    project = project.rename(tmp_path / "elsewhere")
    assert run(lambda name: str(project / name)) == set()


def test_the_metadata_of_settings_has_types_that_zenml_stores() -> None:
    """A date is none of them, and ZenML then refuses the whole artifact."""
    fields = ModelSettingsMaterializer("x").extract_metadata(ModelSection(template_date="2024-07-26"))
    assert fields["template_date"] == "2024-07-26"
