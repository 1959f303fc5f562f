"""The demo's base model: a Llama with two million random weights and a tokenizer trained on the demo's text.

It is not pretrained, so everything it can do after a run was learned in that run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.data.demo import pairs as demo

MAX_VOCABULARY = 1024
"""Large enough for each word of the demo to be one token."""
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_base(dest: Path) -> Path:
    """Write weights, tokenizer and chat template to `dest`, reproducible to the byte, and return `dest`."""
    tokenizer = _train_tokenizer()
    special_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **special_ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(demo.SEED)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special_ids)
    model.save_pretrained(dest)
    tokenizer.save_pretrained(dest)
    return dest


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with one token for each word of the demo. It can encode any other text too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for row in demo.rows() for text in (row["prompt"], row["chosen"], row["rejected"]) if text]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )
