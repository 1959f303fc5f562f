"""A damaged or hostile base folder ends in one line: no traceback, no hang."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.base import resolve_base
from posttrain.models.base_checks import base_problems
from posttrain.models.loading import load_chat


def replaced(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:300])


def piped(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut("tokenizer.json"), r"tokenizer\.json is damaged \(Expecting|tokenizer\.json is damaged \(Unterm"),
        (replaced("tokenizer.json", ""), r"tokenizer\.json is damaged \(Expecting value: line 1 column 1"),
        (replaced("tokenizer.json", "{}"), r"the tokenizer cannot be loaded \('added_tokens'\)"),
        (replaced("tokenizer.json", '{"added_tokens": []}'), r"the tokenizer cannot be loaded \(Model missing\."),
        (replaced("tokenizer_config.json", "[1]"), r"tokenizer_config\.json contains a list where a JSON object"),
        (replaced("tokenizer_config.json", '{"eos_token": 7}'), r"the tokenizer cannot be loaded \(Special token eos"),
        (replaced("config.json", "[1]"), r"config\.json contains a list where a JSON object is expected"),
        (replaced("config.json", "null"), r"config\.json contains a NoneType where"),
        (replaced("config.json", "[" * 100_000), r"config\.json is damaged \(maximum recursion depth"),
        (
            replaced("config.json", '{"model_type": "llama", "hidden_size": "x"}'),
            r"cannot be loaded \(Validation error",
        ),
        (replaced("generation_config.json", "[]"), r"generation_config\.json contains a list"),
        (piped("config.json"), r"config\.json is not a regular file"),
        (piped("tokenizer.json"), r"tokenizer\.json is not a regular file"),
        (piped("model.safetensors"), r"model\.safetensors is not a regular file"),
        (piped("extra.txt"), r"extra\.txt is not a regular file"),
        (lambda folder: (folder / "vocab.json").symlink_to("nowhere"), r"vocab\.json is not a regular file"),
    ],
)
def test_a_damaged_folder_is_one_line(
    tmp_path: Path, tiny_folder: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    section = ModelSection(base=str(folder), precision="fp32")
    load_chat(resolve_base(section), section)
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_chat(resolve_base(section), section)
    assert "\n" not in str(caught.value)


def test_a_config_with_values_of_a_wrong_kind_is_a_problem_of_the_base(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}')
    section = ModelSection(base=str(folder), precision="fp32")
    (problem,) = base_problems(resolve_base(section), section, {})
    assert problem.startswith(f"model.base: transformers cannot read the config of {folder} (Validation error")


def test_files_that_transformers_does_not_read_may_be_anything(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    os.mkfifo(folder / "socket")
    (folder / "modules.json").write_text("[]")
    section = ModelSection(base=str(folder), precision="fp32")
    load_chat(resolve_base(section), section)
