"""An endpoint that OpenAI's client talks to, and which changes to another model."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from click.testing import CliRunner
from support.stages import sft_on
from transformers import AutoModelForCausalLM

from posttrain.cli.main import main
from posttrain.config import ModelSection, SftSection
from posttrain.errors import UserError
from posttrain.models.base import resolve_base
from posttrain.reporting.model_card import model_card
from posttrain.serving import endpoint as endpoint_module
from posttrain.serving.endpoint import ModelServer, ServedModel, serve
from posttrain.serving.export import ExportedModel, export
from posttrain.serving.side_by_side import answer, load_speaker
from posttrain.training.trainer import TrainingJob

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, preferences: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint that has learnt one pair by heart, so that its answer ends, and its export."""
    folder = tmp_path_factory.mktemp("served")
    section = ModelSection(base=str(tiny_folder), precision="fp32", chat_template="plain")
    pair = preferences.train.select([0] * 8)
    rows = type(preferences)(pair, pair.select([]), pair)
    sft = SftSection(learning_rate=2e-2, max_steps=60, max_length=96, eval_steps=60)
    checkpoint = sft_on(rows, sft, TrainingJob(resolve_base(section), section, 0, folder / "sft"))
    exported = folder / "tiny"
    export(ExportedModel(checkpoint, section, model_card("tiny", checkpoint.manifest, adapter=False)), str(exported))
    return checkpoint, section, exported, pair[0]["prompt"]


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = CliRunner().invoke(main, ["serve", "--port", str(port)])
    assert done.exit_code == 1
    assert f"127.0.0.1:{port}: cannot be listened on (Address already in use): choose another --port" in done.output


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="vLLM is not installed here"):
        ModelServer(engine="vllm", port=free_port()).check()
    monkeypatch.setattr(endpoint_module, "is_serve_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'posttrain\[serve\]'"):
        ModelServer(engine="transformers", port=free_port()).check()


def test_what_is_not_exported_is_one_line(tmp_path: Path) -> None:
    for name, message in ((None, "contains no exported model"), ("adapter_config.json", "an adapter without its base")):
        if name:
            (tmp_path / name).write_text("{}")
        done = CliRunner().invoke(main, ["serve", str(tmp_path), "--port", str(free_port())])
        assert done.exit_code == 1
        assert message in done.output
        assert "name the folder that `posttrain export VERSION FOLDER` wrote" in done.output


def test_only_the_model_in_production_can_be_followed() -> None:
    done = CliRunner().invoke(main, ["serve", "demo:3", "--follow"])
    assert done.exit_code == 2
    assert "name a model (demo:production)" in done.output


def test_vllm_serves_the_folder_under_its_name() -> None:
    command = ModelServer(host="0.0.0.0", port=81, engine="vllm").command(ServedModel(Path("/models/demo"), "demo-3"))
    assert command[1:] == ["serve", "./demo", "--served-model-name", "demo", "--host", "0.0.0.0", "--port", "81"]
    assert ModelServer(host="0.0.0.0").url == "http://127.0.0.1:8000/v1"


@pytest.mark.slow
def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    port = free_port()
    with pytest.raises(UserError, match="ended with exit code 1 before it was ready"):
        serve(ServedModel(tmp_path / "broken", "broken"), ModelServer(port=port, engine="transformers"), print)


@pytest.mark.slow
def test_a_client_gets_the_answer_of_chat(trained: Any) -> None:
    """Chat, streaming, the stop token, and the end of the server with its parent."""
    checkpoint, section, exported, prompt = trained
    port = free_port()
    command = [
        Path(sys.executable).with_name("posttrain"),
        "serve",
        exported,
        "--port",
        str(port),
        "--engine",
        "transformers",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if " is at " in line)
        assert ready == f"tiny is at http://127.0.0.1:{port}/v1 (model: tiny; transformers)\n"
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any")
        whole = client.chat.completions.create(model="tiny", messages=prompt, temperature=0, max_tokens=60)
        stream = client.chat.completions.create(
            model="tiny", messages=prompt, temperature=0, max_tokens=60, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        cut = client.chat.completions.create(model="tiny", messages=prompt, temperature=0, max_tokens=1)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    speaker = load_speaker("tiny", checkpoint, section)
    speaker.messages = list(prompt)
    expected = answer(speaker, 60, 0.0)
    assert expected
    assert whole.choices[0].message.content.strip() == "".join(pieces).strip() == expected
    assert whole.choices[0].finish_reason == "stop"
    assert cut.choices[0].finish_reason == "length"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.slow
def test_another_model_is_served_when_there_is_one(trained: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "1" / "tiny", tmp_path / "2" / "tiny"
    shutil.copytree(trained[2], first)
    shutil.copytree(trained[2], second)
    model = AutoModelForCausalLM.from_pretrained(second)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-1)
    model.save_pretrained(second)
    endpoint = ModelServer(port=free_port(), engine="transformers", follow_every_s=0.1)
    found: list[Any] = [UserError("the store is away"), UserError("the store is away"), None, None]
    lines: list[str] = []
    replies: list[str] = []

    def ask() -> None:
        client = openai.OpenAI(base_url=endpoint.url, api_key="any")
        reply = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=8)
        replies.append(str(reply.choices[0].message.content))

    def changed() -> ServedModel | None:
        if len(replies) == 0:
            ask()
        if found:
            outcome = found.pop()
            if isinstance(outcome, UserError):
                raise outcome
            return None
        if len(replies) == 1:
            found.extend([None] * 3)
            replies.append("")
            return ServedModel(second, "tiny-2")
        ask()
        raise KeyboardInterrupt

    serve(ServedModel(first, "tiny-1"), endpoint, lines.append, changed)
    assert [line.split(" is at ")[0] for line in lines] == [
        "tiny-1", "still serving the same model: the store is away", "tiny-2"
    ]  # fmt: skip
    assert replies[0] != replies[2]
