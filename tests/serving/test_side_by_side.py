"""Two models answer the same prompt, each in a conversation of its own."""

import io

import pytest
import torch
from rich.console import Console

from posttrain.models.loading import load_chat, load_model
from posttrain.serving.side_by_side import Speaker, converse


@pytest.fixture
def speakers(tiny_base):
    """The tiny model, and the same with its first layer's MLP taken out, so that it answers otherwise."""
    base, section = tiny_base
    found = [Speaker(name, load_model(base, section), load_chat(base, section), section) for name in ("SFT", "DPO")]
    with torch.no_grad():
        found[1].model.model.layers[0].mlp.down_proj.weight.zero_()
    return found


def test_each_answers_for_itself_and_remembers(speakers):
    written = io.StringIO()
    console = Console(file=written, width=80)
    converse(speakers, ["the printer is slow", "now wait"], console, max_new_tokens=8, temperature=0.0)
    lines = written.getvalue().splitlines()
    for speaker in speakers:
        roles = [message["role"] for message in speaker.messages]
        assert roles == ["user", "assistant", "user", "assistant"]
        assert [message["content"] for message in speaker.messages[::2]] == ["the printer is slow", "now wait"]
        for message in speaker.messages[1::2]:
            assert f"{speaker.name}: {message['content']}" in lines
    assert speakers[0].messages[1] != speakers[1].messages[1]


def test_an_answer_is_the_greedy_one(speakers):
    """Word by word or at once: the same text as from the model's own generate."""
    speaker = speakers[0]
    converse([speaker], ["the light is green"], Console(file=io.StringIO()), max_new_tokens=8, temperature=0.0)
    tokenizer = speaker.chat.tokenizer
    prompt = tokenizer.apply_chat_template(
        speaker.messages[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = speaker.model.generate(**prompt, max_new_tokens=8, do_sample=False)
    expected = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert speaker.messages[1]["content"] == expected.strip()


def test_on_a_terminal_the_answers_stand_side_by_side(speakers):
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True)
    converse(speakers, ["restart it now"], console, max_new_tokens=4, temperature=0.0)
    assert any("SFT" in line and "DPO" in line for line in written.getvalue().splitlines())
