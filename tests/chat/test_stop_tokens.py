"""Exactly one stop token ends every answer: the template's end of turn, among all special tokens of the tokenizer."""

import json

import pytest
from datasets import Dataset
from support.chats import chat_of, trl_chat

from docs.chat_templates import trl_template
from posttrain.chat.template import TEMPLATES
from posttrain.chat.tokenise import tokenise_pairs

CHATML = trl_template("qwen2_5")


def chosen_of(chat, chosen="Yes.", **answer):
    rows = Dataset.from_list(
        [
            {
                "id": "a",
                "prompt": [{"role": "user", "content": "Hi"}],
                "chosen": [{"role": "assistant", "content": chosen, **answer}],
                "rejected": [{"role": "assistant", "content": "No."}],
            }
        ]
    )
    return chat.tokenizer.decode(tokenise_pairs(chat, rows, 2000, 1900).rows[0]["chosen_ids"])


@pytest.mark.parametrize(
    ("template", "eos", "stop", "chosen"),
    [
        ("llama3", "</s>", "<|eot_id|>", "Yes.<|eot_id|>"),
        ("llama3_1", "<|end_of_text|>", "<|eot_id|>", "Yes.<|eot_id|>"),
        ("gemma3", "<eos>", "<end_of_turn>", "Yes.<end_of_turn>"),
        ("qwen2_5", "<|im_end|>", "<|im_end|>", "Yes.<|im_end|>"),
        ("qwen2_5", "<|endoftext|>", "<|im_end|>", "Yes.<|im_end|>"),
        ("phi3", "<|endoftext|>", "<|end|>", "Yes.<|end|>"),
        ("gptoss", "<|return|>", "<|return|>", "<|channel|>final<|message|>Yes.<|return|>"),
        ("glm4moe", "<|endoftext|>", "<|endoftext|>", "\n<think></think>\nYes.<|endoftext|>"),
    ],
)
def test_the_first_special_token_after_an_answer_ends_it(template, eos, stop, chosen):
    chat = trl_chat(template, eos=eos)
    assert chat.tokenizer.decode([chat.stop_id]) == stop
    assert chosen_of(chat) == chosen


def test_a_nameless_special_token_is_found_before_the_end_of_sequence():
    """Neither is an attribute of the tokenizer: `all_special_ids` has the end of sequence alone."""
    chat = chat_of("{% for m in messages %}{{ m.role + ': ' + m.content }}<end>\n{{ eos_token }}{% endfor %}", "<end>")
    assert chosen_of(chat).endswith("Yes.<end>")


@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])
def test_the_built_in_chatml_writes_one_end_of_turn(eos):
    chat = chat_of(TEMPLATES["chatml"], "<|im_end|>", "<|im_start|>", eos=eos)
    assert chosen_of(chat) == "Yes.<|im_end|>"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", " <|im_end|><|im_end|>", "</s>", "<|eot_id|>"])
def test_a_stop_token_at_the_end_of_an_answer_is_not_doubled(end):
    chat = trl_chat("qwen2_5", eos="<|im_end|>")
    assert chosen_of(chat, f"Yes.{end}") == "Yes.<|im_end|>"


def test_an_answer_that_calls_a_tool_ends_with_its_own_stop_token():
    chat = trl_chat("gptoss", eos="<|return|>")
    call = {"type": "function", "function": {"name": "look", "arguments": {"what": "x"}}}

    text = chosen_of(chat, "", tool_calls=json.dumps([call]))
    assert text.endswith('{"what": "x"}<|call|>')
    assert set(chat.stop_ids) == set(chat.tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"]))


def test_the_base_models_stop_tokens_are_joined():
    chat = chat_of(CHATML, "<|im_start|>", "<|im_end|>", "<|endoftext|>", more_stop_ids=(7, 513))
    assert set(chat.stop_ids) == {7, 513, chat.stop_id, chat.tokenizer.eos_token_id}
