"""Templates, stop tokens and the cuts that make a pair fit."""

import pytest
from datasets import Dataset

from posttrain.chat.template import TEMPLATES, TemplateSettings, prepare_chat
from posttrain.chat.tokenise import tokenise_completions, tokenise_pairs
from posttrain.errors import UserError
from posttrain.models.loading import load_chat


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def pair(prompt="Help me", chosen="Yes, at once.", rejected="No.", row_id="a"):
    return {"id": [row_id], "prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


@pytest.fixture
def chat(tiny_base):
    return load_chat(*tiny_base)


def test_a_pair_is_prompt_and_two_responses_that_stop(chat):
    row = tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 32).rows[0]
    decode = chat.tokenizer.decode
    assert decode(row["prompt_ids"]) == "<bos><|user|>Help me<|assistant|>"
    assert decode(row["chosen_ids"]) == "Yes, at once.<eos>"
    assert decode(row["rejected_ids"]) == "No.<eos>"


def test_the_prompt_is_what_a_served_model_sees(chat):
    row = tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 32).rows[0]
    served = chat.tokenizer.apply_chat_template(user("Help me"), add_generation_prompt=True, return_dict=False)
    assert row["prompt_ids"] == served


def test_the_template_is_given_the_tools_of_a_row(tiny_base):
    """Both to the prompt and to the whole conversation, or the prompt would not be where the responses begin."""
    chat = load_chat(*tiny_base)
    chat.tokenizer.chat_template = (
        "{% if tools %}{% for tool in tools %}{{ tool['name'] }};{% endfor %}{% endif %}" + chat.tokenizer.chat_template
    )
    rows = Dataset.from_dict({**pair(), "tools": ['[{"name": "search"}]']})
    row = tokenise_pairs(chat, rows, 64, 32).rows[0]
    assert chat.tokenizer.decode(row["prompt_ids"]).replace(" ", "").startswith("search;")
    assert (
        row["chosen_ids"]
        == tokenise_pairs(load_chat(*tiny_base), Dataset.from_dict(pair()), 64, 32).rows[0]["chosen_ids"]
    )


def test_several_turns_and_a_system_message(chat):
    row = pair()
    row["prompt"] = [[{"role": "system", "content": "Be kind."}, *user("Hi"), *assistant("Hello"), *user("Help")]]
    ids = tokenise_pairs(chat, Dataset.from_dict(row), 99, 99).rows[0]["prompt_ids"]
    assert (
        chat.tokenizer.decode(ids)
        == "<bos><|system|>Be kind.<|user|>Hi<|assistant|>Hello<eos><|user|>Help<|assistant|>"
    )


def test_a_long_prompt_loses_its_beginning_and_is_counted(chat):
    whole = tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 32).rows[0]["prompt_ids"]
    cut = tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 3)
    assert cut.rows[0]["prompt_ids"] == whole[-3:]
    assert cut.counts["prompt_cut"] == 1


def test_a_long_response_loses_its_end_and_is_counted(chat):
    whole = tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 32).rows[0]
    room = 4
    cut = tokenise_pairs(chat, Dataset.from_dict(pair()), len(whole["prompt_ids"]) + room, 32)
    assert cut.rows[0]["chosen_ids"] == whole["chosen_ids"][:room]
    assert cut.counts["chosen_cut"] == 1


def test_a_pair_without_room_or_difference_is_left_out_and_counted(chat):
    whole = tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 32).rows[0]
    n_prompt = len(whole["prompt_ids"])
    none = tokenise_pairs(chat, Dataset.from_dict(pair()), n_prompt, n_prompt)
    assert (len(none.rows), none.counts["no_room"]) == (0, 1)
    same = pair(chosen="Yes, at once.", rejected="Yes, at twelve.")
    alike = tokenise_pairs(chat, Dataset.from_dict(same), n_prompt + 2, n_prompt)
    assert (len(alike.rows), alike.counts["identical_after_cut"]) == (0, 1)


def test_sft_learns_the_completion_and_its_stop_token_only(chat):
    rows = Dataset.from_dict({"prompt": [user("Help me")], "completion": [assistant("Yes.")]})
    row = tokenise_completions(chat, rows, 64).rows[0]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert chat.tokenizer.decode(learned) == "Yes.<eos>"
    assert row["labels"][: -len(learned)] == [-100] * (len(row["labels"]) - len(learned))


def test_sft_cuts_the_prompt_before_the_completion(chat):
    rows = Dataset.from_dict({"prompt": [user("word " * 50)], "completion": [assistant("Yes.")]})
    result = tokenise_completions(chat, rows, 20)
    assert len(result.rows[0]["input_ids"]) == 20
    assert result.rows[0]["labels"][-1] == chat.stop_id
    assert result.counts == {"prompt_cut": 1, "completion_cut": 0}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_ends_a_response(tiny_base, name):
    base, section = tiny_base
    chat = load_chat(base, section.model_copy(update={"chat_template": name}))
    row = tokenise_pairs(chat, Dataset.from_dict(pair()), 300, 200).rows[0]
    assert row["chosen_ids"][-1] == chat.stop_id == chat.tokenizer.eos_token_id
    text = chat.tokenizer.decode(row["prompt_ids"] + row["chosen_ids"])
    assert "Help me" in text
    assert "\nYes, at once." in text or "Assistant: Yes, at once." in text


def test_a_template_that_rewrites_the_prompt_is_refused(chat):
    counted = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    chat.tokenizer.chat_template = counted + "{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(UserError, match="renders the prompt differently"):
        tokenise_pairs(chat, Dataset.from_dict(pair()), 64, 32)


def test_a_template_that_refuses_a_role_or_drops_the_answer_is_refused(chat):
    row = pair()
    row["prompt"] = [[{"role": "system", "content": "Be kind."}, *user("Hi")]]
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    chat.tokenizer.chat_template = refusing + TEMPLATES["plain"]
    with pytest.raises(UserError, match=r"template_refuses: 1 rows.* row id a \(no system\)"):
        tokenise_pairs(chat, Dataset.from_dict(row), 64, 32)
    chat.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="leaves out the assistant's response"):
        prepare_chat(chat.tokenizer)


def test_a_broken_or_unknown_template_is_named(chat, tmp_path):
    with pytest.raises(
        UserError, match=r"'chatmll' is neither a built-in template \(alpaca, chatml, plain\) nor a \.jinja file"
    ):
        prepare_chat(chat.tokenizer, TemplateSettings("chatmll"))
    broken = tmp_path / "broken.jinja"
    broken.write_text("{{ raise_exception('no') }}")
    with pytest.raises(UserError, match="fails on a plain question"):
        prepare_chat(chat.tokenizer, TemplateSettings(str(broken)))
