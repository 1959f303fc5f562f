"""Models with random weights, built from configs on the device, and pairs of random tokens for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from posttrain.chat.tokenise import PAIR_TOKENS
from posttrain.chat.tokens import PairTokens
from posttrain.config import Lengths, ModelSection
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import load_chat, load_model

import pyarrow as pa  # isort: skip

SPECIAL = ("<s>", "</s>", "<pad>")
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
    "small": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "olmo2", "granite", "stablelm", "phi3")
"""Families whose log-probabilities are compared with float64: grouped heads, biases, norms of queries, scaled logits."""


def random_model(shape: dict[str, Any], device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model with random weights on a device; the same for the same seed, shape and device."""
    settings = dict(shape)
    config = AutoConfig.for_model(
        settings.pop("model_type"), **settings, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def word(token: int) -> str:
    """Return the text of a token: every id above the special ones is a word of its own."""
    return SPECIAL[token] if token < len(SPECIAL) else f"w{token}"


def word_tokenizer(n_vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose ids and words are the same thing, so that engines that read text get exactly these lengths."""
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(n_vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {{ eos_token }}{% endfor %}"
    return fast


@dataclass(frozen=True)
class Subject:
    """A base model on disk, the checkpoint that DPO starts from, and the settings to load them with."""

    base: Base
    section: ModelSection
    sft: Checkpoint


def write_base(shape: dict[str, Any], folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model and its tokenizer as a folder that transformers loads."""
    random_model(shape, device, dtype).save_pretrained(folder)
    word_tokenizer(shape["vocab_size"]).save_pretrained(folder)
    return folder


def start_from(base_folder: Path, folder: Path, **settings: Any) -> Subject:
    """Return the model with a new adapter, or for full training the base itself, as the checkpoint that DPO starts from."""
    section = ModelSection.model_validate({"base": str(base_folder), "chat_template": "plain", **settings})
    base = resolve_base(section)
    chat = load_chat(base, section)
    torch.manual_seed(0)
    load_model(base, section, trainable=True).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    chat.tokenizer.save_pretrained(folder)
    kind = "full" if section.method == "full" else "adapter"
    about = {"template": chat.template, "stop_ids": chat.stop_ids, "metrics": {}}
    return Subject(base, section, seal(folder, [], stage="sft", kind=kind, base=base, parent=None, **about))


Lengths3 = tuple[int, int, int]


def random_pairs(lengths: Sequence[Lengths3], n_vocabulary: int, seed: int) -> list[dict[str, Any]]:
    """Return pairs of random token ids.

    Args:
        lengths: tokens of prompt, chosen and rejected of each pair; the responses end in the stop token.
    """
    generator = random.Random(seed)

    def tokens(n: int, stop: bool) -> list[int]:
        ids = [generator.randrange(len(SPECIAL), n_vocabulary) for _ in range(n - stop)]
        return [*ids, 1] if stop else ids

    return [
        {
            "id": f"{i:06d}",
            "prompt_ids": tokens(n_prompt, False),
            "chosen_ids": tokens(n_chosen, True),
            "rejected_ids": tokens(n_rejected, True),
        }
        for i, (n_prompt, n_chosen, n_rejected) in enumerate(lengths)
    ]


def as_tokens(pairs: list[dict[str, Any]], subject: Subject, max_length: int) -> PairTokens:
    """Return the pairs as the tokens that scoring and DPO read."""
    tables = {
        split: pa.Table.from_pylist(rows, schema=PAIR_TOKENS)
        for split, rows in (("train", pairs), ("validation", []), ("test", []))
    }
    chat = load_chat(subject.base, subject.section, subject.sft)
    lengths = Lengths(max_length=max_length, max_prompt_length=max_length - 1)
    return PairTokens(tables, {split: {} for split in tables}, lengths, chat.digest)


def as_text(pairs: list[dict[str, Any]]) -> Dataset:
    """Return the pairs as the text that TRL tokenises to the same ids."""
    return Dataset.from_list(
        [
            {name: " ".join(map(word, pair[f"{name}_ids"])) for name in ("prompt", "chosen", "rejected")}
            for pair in pairs
        ]
    )
