"""Fixtures of models and pairs that are small enough to train in a second."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from posttrain.config import ModelSection
from posttrain.data.preferences import Preferences
from posttrain.model import demo_folder, resolve_base

WORDS = "the printer is slow please restart it now and wait a while for the light to turn green again".split()


@pytest.fixture(scope="session", autouse=True)
def _small_cache(tmp_path_factory):
    """What the library keeps between runs goes to a scratch folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, _small_cache) -> Path:
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
    section = ModelSection(base=str(tiny_folder))
    return resolve_base(section), section


def make_pairs(n: int, seed: int) -> Dataset:
    """Pairs of ragged lengths, some responses of a single word, in the canonical layout."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=generator))

    rows = [
        {
            "id": f"{seed}-{i}",
            "source": "tiny",
            "prompt": [{"role": "user", "content": words(1, 20)}],
            "chosen": [{"role": "assistant", "content": words(1, 12) + " yes"}],
            "rejected": [{"role": "assistant", "content": words(1, 12) + " no"}],
            "true_margin": None,
        }
        for i in range(n)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    """Twelve pairs."""
    return make_pairs(12, seed=1)


@pytest.fixture(scope="session")
def preferences() -> Preferences:
    """Forty pairs to train on, eight to watch, eight to judge by."""
    return Preferences(make_pairs(40, seed=2), make_pairs(8, seed=3), make_pairs(8, seed=4))
