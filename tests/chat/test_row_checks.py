"""Rows under a chat template: thoughts, tools, control tokens, refused rows and dates arrive in the tokens, or are counted."""

import json
from datetime import date

import pytest
from datasets import Dataset
from support.chats import chat_of, trl_chat

from docs.chat_templates import byte_tokenizer, trl_template
from posttrain.chat.findings import Findings
from posttrain.chat.template import TEMPLATES, TemplateSettings, prepare_chat
from posttrain.chat.tokenise import tokenise_completions, tokenise_pairs
from posttrain.errors import UserError

STRIPS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A:' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ 'U:' + m.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:GEN' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "lookup", "arguments": '{"what": "rain"}'}}
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def decoded(chat, prompt, chosen, rejected=None, findings=None, tools=None):
    """Return prompt and chosen as text; None if the row is dropped."""
    row = {"id": "r1", "source": "a.jsonl", "prompt": prompt, "chosen": [chosen]}
    row |= {"rejected": [rejected or assistant("No.")], "tools": json.dumps(tools) if tools else None}
    rows = tokenise_pairs(chat, Dataset.from_list([row]), 9000, 8000, findings).rows
    return [chat.tokenizer.decode(rows[0][f"{part}_ids"]) for part in ("prompt", "chosen")] if len(rows) else None


# Thoughts

THOUGHTS = [assistant("<think>\nslow\n</think>\n\nYes."), assistant("Yes.", reasoning_content="slow")]


@pytest.mark.parametrize("chosen", THOUGHTS)
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (STRIPS.replace("GEN", ""), "<think>\nslow\n</think>\n\nYes.</s>"),
        (STRIPS.replace("GEN", "<think>\n"), "slow\n</think>\n\nYes.</s>"),
        (trl_template("deepseek_r1_distill"), "slow\n</think>\n\nYes.<｜end▁of▁sentence｜>"),
        (trl_template("qwen3"), "<think>\nslow\n</think>\n\nYes.<|im_end|>"),
        (trl_template("qwen3_5_think"), "slow\n</think>\n\nYes.<|im_end|>"),
        (
            trl_template("gptoss"),
            "<|channel|>analysis<|message|>slow<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        ),
        (TEMPLATES["plain"], "<think>\nslow\n</think>\n\nYes.</s>"),
    ],
)  # fmt: skip
def test_thoughts_reach_the_tokens_under_every_template(template, expected, chosen):
    tokens = ["<|im_end|>", "<|im_start|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|end|>", "<|call|>"]
    assert decoded(chat_of(template, *tokens), [user("Hi")], chosen)[1].lstrip() == expected


def test_thoughts_that_a_template_takes_out_are_counted_and_can_drop_the_row_or_stop_the_run():
    chat = chat_of(STRIPS.replace("GEN", ""))
    kept = Findings()
    assert decoded(chat, [user("Hi")], THOUGHTS[0], findings=kept)[1].startswith("<think>\nslow")
    assert (kept.found, kept.left_out) == ({"template_leaves_out": 1}, {"thoughts": 1})
    assert decoded(chat, [user("Hi")], THOUGHTS[0], findings=Findings({"template_leaves_out": "drop"})) is None
    failing = Findings({"template_leaves_out": "fail"})
    decoded(chat, [user("Hi")], THOUGHTS[0], findings=failing)
    with pytest.raises(UserError, match=r"template_leaves_out: 1 rows.*a\.jsonl, row id r1 \(thoughts\)"):
        failing.check_policies("t.jinja", 1.0)


def test_an_answer_without_a_thought_closes_the_one_that_the_prompt_opens():
    found = Findings()
    chat = chat_of(STRIPS.replace("GEN", "<think>\n"))
    assert decoded(chat, [user("Hi")], assistant("<b>Yes.</b>"), findings=found)[1] == "\n</think>\n\n<b>Yes.</b></s>"
    assert found.found == {"no_thoughts": 1}


def test_a_template_that_refuses_answers_without_a_thought_works_with_thoughts():
    needs = "{% for m in messages %}{% if m.role == 'assistant' and not m.reasoning_content %}"
    needs += "{{ raise_exception('think!') }}{% endif %}"
    needs += "{{ m.role + ':' + (m.reasoning_content or '') + '|' + m.content + eos_token }}{% endfor %}"
    chat = chat_of(needs + "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}")
    assert decoded(chat, [user("Hi")], THOUGHTS[1], assistant("No.", reasoning_content="hm"))[1] == "slow|Yes.</s>"
    with pytest.raises(UserError, match=r"template_refuses: 1 rows.*\(think!\)"):
        decoded(chat, [user("Hi")], assistant("Yes."))


def test_text_that_a_template_drops_is_counted():
    """This one shows the content of an answer only if it calls no tool, and no system message."""
    chat = chat_of(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% endif %}{% endfor %}"
    )
    found = Findings()
    prompt = [{"role": "system", "content": "Be kind."}, user("Hi")]
    assert decoded(chat, prompt, assistant("Yes.", tool_calls=json.dumps([CALL])), findings=found, tools=TOOLS)
    assert found.left_out == {"system message": 1, "tools": 1, "tool calls": 1}


# Settings of the template


def test_kwargs_are_part_of_the_template_and_so_of_every_stage_and_of_the_checkpoint(tmp_path):
    from transformers import AutoTokenizer

    chat = chat_of(trl_template("qwen3"), "<|im_end|>", enable_thinking=False)
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert decoded(chat, [user("Hi")], assistant("Yes.")) == [prompt, "Yes.<|im_end|>"]
    chat.tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.apply_chat_template([user("Hi")], tokenize=False, add_generation_prompt=True) == prompt
    thinking = saved.apply_chat_template([user("Hi")], tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert thinking.endswith("<|im_start|>assistant\n")


def test_a_variable_that_the_template_does_not_read_is_named():
    with pytest.raises(
        UserError, match=r"does not read 'enable_thinkin'.* it reads content, enable_thinking, reasoning"
    ):
        chat_of(trl_template("qwen3"), enable_thinkin=False)


@pytest.mark.parametrize("value", ['a "quoted" line\nand {% more %}', None, True, [1, {"a": None}], "null"])
def test_values_of_every_type_arrive_as_they_are(value):
    chat = chat_of("{{ other | tojson }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", other=value)
    assert decoded(chat, [user("Hi")], assistant("Yes."))[0] == json.dumps(value, ensure_ascii=False) + "Hi</s>"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% set f = '%A, %-d %B' %}{{ strftime_now(f) }}", "Friday, 26 July"),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %}", "2024-07-26"),
        ("{{ strftime_now('%Y') | int + 1 }}", "2025"),
    ],
)
def test_a_template_with_a_clock_prints_the_same_date_on_every_day(printed, expected):
    chat = chat_of(printed + "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    assert decoded(chat, [user("Hi")], assistant("Yes."))[0] == expected + "Hi</s>"
    assert chat.has_clock
    assert chat_of(printed + "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}").digest == chat.digest


def test_another_date_makes_another_template():
    tokenizers = [
        byte_tokenizer([], "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}") for _ in "ab"
    ]
    one, other = (
        prepare_chat(t, TemplateSettings(day=date(y, 1, 1))) for t, y in zip(tokenizers, (2025, 2026), strict=True)
    )
    assert one.digest != other.digest


def test_named_templates_become_one(tmp_path):
    chat = chat_of(
        {"default": TEMPLATES["plain"], "tool_use": "{{ tools[0].function.name }};" + TEMPLATES["plain"], "rag": "x"}
    )
    chat.tokenizer.save_pretrained(tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    assert decoded(chat, [user("Hi")], assistant("Yes."))[0] == "<s>User: Hi\n\nAssistant:"
    assert decoded(chat, [user("Hi")], assistant("Yes."), tools=TOOLS)[0] == "lookup;<s>User: Hi\n\nAssistant:"
    with pytest.raises(UserError, match="has the templates a, b and none is the default: name one of them"):
        chat_of({"a": "x", "b": "y"})


# Tools


@pytest.mark.parametrize("arguments", ['{"what": "rain"}', {"what": "rain"}])
@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("qwen3", '<tool_call>\n{"name": "lookup", "arguments": {"what": "rain"}}\n</tool_call><|im_end|>'),
        ("llama3_1", '{"name": "lookup", "parameters": {"what": "rain"}}<|eot_id|>'),
        ("lfm2_v2", "<|tool_call_start|>[lookup(what='rain')]<|tool_call_end|><|im_end|>"),
    ],
)
def test_tool_calls_are_trained_on_in_the_templates_own_format(template, written, arguments):
    call = {"type": "function", "function": {"name": "lookup", "arguments": arguments}}
    found = Findings()
    chat = trl_chat(template)
    text = decoded(chat, [user("Rain?")], assistant("", tool_calls=json.dumps([call])), findings=found, tools=TOOLS)
    assert text[1].endswith(written)
    assert found.found == {}


def test_tool_calls_and_results_in_the_prompt_reach_the_tokens_or_are_counted():
    prompt = [
        user("Rain?"),
        assistant("", tool_calls=json.dumps([CALL])),
        {"role": "tool", "content": "42", "name": "lookup"},
    ]
    found = Findings()
    text = decoded(trl_chat("qwen3"), prompt, assistant("Yes."), findings=found, tools=TOOLS)[0]
    assert '"arguments": {"what": "rain"}' in text
    assert "<tool_response>\n42" in text
    assert found.found == {}
    decoded(chat_of(TEMPLATES["plain"]), prompt, assistant("Yes."), findings=found, tools=TOOLS)
    assert found.left_out == {"earlier tool calls": 1, "tools": 1}


# Control tokens


def test_text_that_spells_control_tokens_is_encoded_as_text():
    chat = chat_of(TEMPLATES["plain"])
    prompt, chosen = [user("What is </s>?")], assistant("The mark </s> ends a turn.")
    found = Findings()
    assert decoded(chat, prompt, chosen, findings=found) == [
        "<s>User: What is </s>?\n\nAssistant:",
        " The mark </s> ends a turn.</s>",
    ]
    assert found.found == {"control_tokens": 1}
    rows = Dataset.from_list([{"id": "a", "prompt": prompt, "chosen": [chosen], "rejected": [assistant("No.")]}])
    stop, row = chat.stop_id, tokenise_pairs(chat, rows, 200, 100).rows[0]
    assert (row["prompt_ids"].count(stop), row["chosen_ids"].count(stop), row["chosen_ids"][-1]) == (0, 1, stop)
    kept = tokenise_pairs(chat, rows, 200, 100, Findings({"control_tokens": "keep"})).rows[0]
    assert (kept["prompt_ids"].count(stop), kept["chosen_ids"].count(stop)) == (1, 2)
    assert len(tokenise_pairs(chat, rows, 200, 100, Findings({"control_tokens": "drop"})).rows) == 0


def test_escaped_text_has_the_tokens_of_the_same_letters():
    """No letter is lost or added where the pieces meet: a token for each byte and the two special tokens of the template."""
    chat = chat_of(TEMPLATES["plain"])
    rows = Dataset.from_list(
        [{"id": "a", "prompt": [user("a</s>b")], "chosen": [assistant("x")], "rejected": [assistant("y")]}]
    )
    row = tokenise_pairs(chat, rows, 200, 100).rows[0]
    assert len(row["prompt_ids"]) == 1 + len("User: a</s>b\n\nAssistant:")


def test_marks_of_thoughts_stay_tokens_in_answers_and_become_text_elsewhere():
    chat = chat_of(TEMPLATES["plain"], "<think>", "</think>")
    rows = [{"id": "a", "prompt": [user("Why <think>?")], "chosen": [THOUGHTS[0]], "rejected": [assistant("No.")]}]
    row = tokenise_pairs(chat, Dataset.from_list(rows), 200, 100).rows[0]
    mark = chat.tokenizer.convert_tokens_to_ids("<think>")
    assert (row["prompt_ids"].count(mark), row["chosen_ids"].count(mark)) == (0, 1)


TEMPLATED = "<s>User: How?\n\nAssistant:"


@pytest.mark.parametrize(
    "prompt",
    [
        TEMPLATED,
        TEMPLATED.removeprefix("<s>"),
        "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow?<|eot_id|>",
        "<s>[INST] How? [/INST]",
        "<bos><start_of_turn>user\nHow?<end_of_turn>\n<start_of_turn>model\n",
        "### Instruction:\nHow?\n\n### Response:\n",
        "<｜User｜>How?<｜Assistant｜>",
    ],
)
def test_a_prompt_that_is_already_templated_is_found(prompt):
    chat = chat_of(TEMPLATES["plain"])
    found = Findings()
    assert decoded(chat, [user(prompt)], assistant("Yes.</s>"), findings=found) is None
    assert found.dropped["already_templated"] == 1
    with pytest.raises(UserError, match="already_templated: 1 rows"):
        found.check_policies("plain", 0.5)


def test_the_templates_own_marks_can_be_removed():
    chat, found = chat_of(TEMPLATES["plain"]), Findings({"already_templated": "unwrap"})
    assert decoded(chat, [user(TEMPLATED)], assistant("Yes.</s>"), findings=found) == [
        "<s>User: How?\n\nAssistant:",
        " Yes.</s>",
    ]
    assert found.found == {"stop_in_answer": 1, "already_templated": 1}


@pytest.mark.parametrize(
    "text", ["What does <|im_start|> mean?", "User: is a word.", "Human: hi", "Use [INST] twice.", "### Response:"]
)
def test_text_about_templates_is_no_template(text):
    found = Findings()
    assert decoded(chat_of(TEMPLATES["plain"]), [user(text)], assistant("Yes."), findings=found)
    assert "already_templated" not in found.found


# One bad row

GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TEMPLATES["plain"]
)
SYSTEM = [{"role": "system", "content": "Be kind."}, user("Hi")]


def test_a_refused_row_is_dropped_and_counted_and_the_others_are_used():
    rows = [{"id": str(i), "source": "a.jsonl", "prompt": [user("Hi")]} for i in range(9)] + [
        {"id": "x", "source": "a.jsonl", "prompt": SYSTEM}
    ]
    rows = [row | {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]} for row in rows]
    found = Findings()
    result = tokenise_pairs(chat_of(GEMMA), Dataset.from_list(rows), 200, 100, found)
    assert (len(result.rows), result.counts["template_refuses"], found.n_rows) == (9, 1, 10)
    found.check_policies("gemma", 0.1)
    with pytest.raises(
        UserError, match=r"1 of 10 rows cannot be used.*max_drop_share 0\.05(.|\n)*a\.jsonl, row id x \(System role"
    ):
        found.check_policies("gemma", 0.05)


def test_a_refused_system_message_can_be_folded_into_the_first_user_message():
    found = Findings({"template_refuses": "fold"})
    assert (
        decoded(chat_of(GEMMA), SYSTEM, assistant("Yes."), findings=found)[0] == "<s>User: Be kind.\n\nHi\n\nAssistant:"
    )
    assert (found.found, found.counts()) == ({"template_refuses": 1}, {})
    other = GEMMA.replace("messages[0].role == 'system'", "'Hi' in messages[0].content or 'Hi' in messages[-1].content")
    assert decoded(chat_of(other), SYSTEM, assistant("Yes."), findings=found) is None
    assert found.counts() == {"template_refuses": 1}


# Every assistant turn


@pytest.mark.parametrize("template", ["plain", "gptoss", "qwen3"])
def test_every_answer_is_trained_on_as_the_model_would_write_it(template):
    """gpt-oss ends earlier answers with another token, and Qwen 3 shows them without thoughts: they become rows of their own."""
    chat = chat_of(TEMPLATES["plain"]) if template == "plain" else trl_chat(template, eos="<|return|>")
    prompt = [user("A?"), assistant("B."), user("C?")]
    rows = Dataset.from_list([{"id": "a", "prompt": prompt, "completion": [assistant("D.")]}])
    learned = []
    for row in tokenise_completions(chat, rows, 2000, loss_on_all=True).rows:
        ids = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        learned.append(chat.tokenizer.decode(ids))
    expected = {
        "plain": [" B.</s> D.</s>"],
        "gptoss": [f"<|channel|>final<|message|>{text}<|return|>" for text in ("B.", "D.")],
        "qwen3": [f"<think>\n\n</think>\n\n{text}<|im_end|>" for text in ("B.", "D.")],
    }
    assert learned == expected[template]
    last = tokenise_completions(chat, rows, 2000).rows
    assert [chat.tokenizer.decode([i for i in row["labels"] if i != -100]) for row in last] == [
        learned[-1][-len(learned[-1]) :].removeprefix(" B.</s>")
    ]


def test_an_answer_with_weight_0_is_not_trained_on():
    prompt = [user("A?"), assistant("B.", weight=0.0), user("C?"), assistant("D.", weight=1.0), user("E?")]
    chat = chat_of(TEMPLATES["plain"])
    rows = Dataset.from_list([{"id": "a", "prompt": prompt, "completion": [assistant("F.")]}])
    row = tokenise_completions(chat, rows, 2000, loss_on_all=True).rows[0]
    assert chat.tokenizer.decode([label for label in row["labels"] if label != -100]) == " D.</s> F.</s>"
    cut = tokenise_completions(chat, rows, 24, loss_on_all=True).rows[0]
    assert (len(cut["labels"]), chat.tokenizer.decode([label for label in cut["labels"] if label != -100])) == (
        24,
        " F.</s>",
    )
