"""Tokenizers of bytes with the special tokens of real models, and the chat templates that ship with TRL."""

import re
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import Chat, TemplateSettings, prepare_chat

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
LOOKS_SPECIAL = re.compile(
    r"<[|｜][^<>\n']{1,40}?[|｜]>|</?s>|<(?:start|end)_of_turn>|<bos>|<eos>|<\|turn>|<turn\|>|<end_of_utterance>"
)
"""What a template writes as one token, in the formats of common models."""


def byte_tokenizer(special, template=None, bos="<s>", eos="</s>", plain=()):
    """Return a tokenizer whose tokens are bytes and the given special tokens; `plain` are added tokens that are not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*dict.fromkeys([bos, eos, *special])])
    backend.add_tokens(list(plain))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def chat_of(template, *special, eos="</s>", bos="<s>", plain=(), more_stop_ids=(), **kwargs) -> Chat:
    """Return a chat with a template and special tokens."""
    tokenizer = byte_tokenizer(special, template, bos, eos, plain)
    return prepare_chat(tokenizer, TemplateSettings(kwargs=kwargs), more_stop_ids)


def trl_template(name):
    """Return the text of a chat template that ships with TRL."""
    return (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def trl_chat(name, eos="</s>", **kwargs) -> Chat:
    """Return a chat with a template of TRL and the special tokens that it writes."""
    template = trl_template(name)
    return chat_of(template, *sorted(set(LOOKS_SPECIAL.findall(template))), eos=eos, **kwargs)
