"""One ZenML client and one MLflow store for all tests, in a scratch folder; models and pairs that train in a second."""

import gc
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from datasets import Dataset
from support.pairs import make_pairs
from support.paths import ROOT
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from posttrain.config import ModelSection
from posttrain.data.stored import Preferences
from posttrain.models.base import demo_folder, resolve_base

# Before ZenML is imported. Every process of pytest-xdist has a store, a cache and a ZenML repository of its own: ZenML writes the
# active stack into `.zen/config.yaml` of the repository, which is therefore not the folder of the sources.
SCRATCH = tempfile.TemporaryDirectory(prefix="posttrain-tests-")
REPOSITORY = Path(SCRATCH.name, "repository")
(REPOSITORY / ".zen").mkdir(parents=True)
(REPOSITORY / "constraints.txt").symlink_to(ROOT / "constraints.txt")
os.environ.update(
    ZENML_CONFIG_PATH=f"{SCRATCH.name}/zenml",
    ZENML_LOCAL_STORES_PATH=f"{SCRATCH.name}/stores",
    ZENML_REPOSITORY_PATH=str(REPOSITORY),
    ZENML_CUSTOM_SOURCE_ROOT=str(ROOT),
    ZENML_ANALYTICS_OPT_IN="false",
    ZENML_LOGGING_VERBOSITY="WARN",
    MLFLOW_TRACKING_URI=f"sqlite:///{SCRATCH.name}/mlflow.db",
    POSTTRAIN_CACHE=f"{SCRATCH.name}/cache",
    OMP_NUM_THREADS="1",
)
torch.set_num_threads(1)  # two threads on two busy cores take three times as long as one


# ZenML finds steps that tests define as tests.test_...; a package that SageMaker's SDK needs installs one of the same name.
sys.modules["tests"] = ModuleType("tests")
sys.modules["tests"].__path__ = [str(ROOT / "tests")]


pytest_plugins = [
    "support.databases",
    "support.forks",
    "support.registries",
    "support.servers",
    "support.transformers4",
]


@pytest.fixture(scope="module", autouse=True)
def _collect_garbage_of_this_module_alone() -> None:
    """Every training collects garbage. The libraries' million objects would take it a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets and a tiny Llama: `$SHARED_DATA`, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 60 000 random weights with the demo's tokenizer, as a transformers folder."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                initializer_range=0.2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_folder):
    """The tiny model as the library names it: its `Base` and `ModelSection`."""
    section = ModelSection(base=str(tiny_folder), precision="fp32")  # auto is bf16 on some CPUs, where figures differ
    return resolve_base(section), section


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    """Twelve pairs."""
    return make_pairs(12, seed=1)


@pytest.fixture(scope="session")
def preferences() -> Preferences:
    """Forty pairs to train on, eight to watch, eight to judge by."""
    return Preferences(make_pairs(40, seed=2), make_pairs(8, seed=3), make_pairs(8, seed=4))
