"""The commands in the documentation work when pasted: they exist, with their options, and so do the files that they name."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from support.paths import ROOT

from posttrain.cli.main import main

PAGES = [page for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]) if page.name != "CHANGELOG.md"]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("posttrain", "make", "zenml pipeline run")
CONFIG = re.compile(r"\bconfigs/[\w./-]*\w\.(?:yaml|sh)")


def commands(text: str) -> Iterator[str]:
    """Yield each command of a page, without its comment."""
    blocks = FENCED.findall(text)
    for line in [*(line for block in blocks for line in block.splitlines()), *INLINE.findall(FENCED.sub("", text))]:
        for command in re.split(r" #|&&|; ", line):
            command = re.sub(r"^\s*([A-Z_]+=\S+ )*(\.venv/bin/)?", "", command).strip()
            if command.startswith(tuple(f"{program} " for program in PROGRAMS)):
                yield command


ALL = sorted(
    {
        (page.relative_to(ROOT).as_posix(), command)
        for page in PAGES
        for command in commands(page.read_text(encoding="utf-8"))
    }
)
POSTTRAIN = [found for found in ALL if found[1].startswith("posttrain ") and "…" not in found[1]]


def test_commands_are_found():
    assert len(POSTTRAIN) > 20
    assert list(commands("```\nA=b .venv/bin/posttrain report  # again\n```\n`make x` `making`")) == [
        "posttrain report",
        "make x",
    ]


@pytest.mark.parametrize(("page", "text"), POSTTRAIN)
def test_posttrain_command_and_its_options_exist(page, text):
    command: click.Command = main
    words = shlex.split(text.replace("...", ""))[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"{page}: no command {words[0]}"
        command, words = found, words[1:]
    context = click.Context(command, resilient_parsing=True)
    flags = {flag for option in command.get_params(context) for flag in [*option.opts, *option.secondary_opts]}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in flags, f"{page}: {text}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_pipelines_and_configs_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands(text):
        if command.startswith("make "):
            named = [word for word in command.split()[1:] if "=" not in word]
            assert set(named) <= targets, command
        elif command.startswith("zenml pipeline run "):
            assert (ROOT / f"{command.split()[3]}.py").exists() or command.split()[3].isupper(), command
    for config in CONFIG.findall(text):
        assert (ROOT / config).exists() or config == "configs/mine.yaml", config
