"""An exported model is the trained one, wherever it goes, and it is there whole or not at all."""

import base64
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import torch
from huggingface_hub import ModelCard, constants
from moto.server import ThreadedMotoServer
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from support.stages import sft_on
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from posttrain.config import EvaluationSection, GenerationsSection, ModelSection, SftSection
from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Writer, complete
from posttrain.models.base import resolve_base
from posttrain.models.loading import load_chat, load_model
from posttrain.reporting.model_card import model_card
from posttrain.serving.export import ExportedModel, ExportOptions, check_is_ours, export
from posttrain.storage import s3 as storage
from posttrain.training.trainer import TrainingJob

pytestmark = pytest.mark.slow

# Its responses end with <|system|>, which is not the tokenizer's end of sequence.
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|system|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, tiny_folder, preferences, tmp_path_factory):
    """A checkpoint that has learnt one pair by heart."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "own.jinja").write_text(TEMPLATE)
    settings = {"method": request.param, "precision": "fp32", "chat_template": str(folder / "own.jinja")}
    section = ModelSection(base=str(tiny_folder), **settings)
    base = resolve_base(section)
    pair = preferences.train.select([0] * 8)
    rows = type(preferences)(pair, pair.select([]), pair)
    sft = SftSection(learning_rate=2e-2, max_steps=60, max_length=96, eval_steps=60)
    checkpoint = sft_on(rows, sft, TrainingJob(base, section, 0, folder / "sft"))
    return SimpleNamespace(base=base, section=section, checkpoint=checkpoint, pair=pair[0])


def exported(trained, dest: Path | str, adapter: bool = False, **options) -> Path:
    card = model_card("tiny", trained.checkpoint.manifest, adapter=adapter)
    model = ExportedModel(trained.checkpoint, trained.section, card)
    return Path(export(model, str(dest), ExportOptions(adapter, **options)))


IDS = torch.arange(1, 41).reshape(4, 10)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_its_logits_are_those_of_the_trained_model(trained, tmp_path):
    folder = exported(trained, tmp_path / "out")
    expected = logits(load_model(trained.base, trained.section, trained.checkpoint))
    found = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    base = logits(load_model(trained.base, trained.section))
    assert (base - expected).abs().max() > 0.1  # and the training is in them


def test_plain_transformers_loads_it_and_it_stops(trained, tmp_path):
    """At the template's end of turn, which is only in generation_config.json."""
    folder = exported(trained, tmp_path / "out")
    answer = pipeline("text-generation", model=str(folder), max_new_tokens=60, do_sample=False)
    (found,) = answer(trained.pair["prompt"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = load_model(trained.base, trained.section, trained.checkpoint)
    prompt = tokenizer.apply_chat_template(trained.pair["prompt"], add_generation_prompt=True, return_dict=False)
    settings = EvaluationSection(generations=GenerationsSection(max_new_tokens=60))
    chat = load_chat(trained.base, trained.section, trained.checkpoint)
    ((ids, stopped),) = complete(Writer(policy, chat, trained.section), [prompt], settings, "answer")
    assert stopped
    assert 0 < len(ids) < 60
    assert found["generated_text"][-1]["content"] == tokenizer.decode(ids)
    expected = sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|system|>")])
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == expected


@pytest.mark.soak
def test_transformers_4_reads_it_alike_and_stops(trained, transformers4, tmp_path):
    folder = exported(trained, tmp_path / "out")
    policy = load_model(trained.base, trained.section, trained.checkpoint)
    (found,) = transformers4.logits(IDS, folder)
    expected = logits(policy)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    chat = load_chat(trained.base, trained.section, trained.checkpoint)
    prompt = chat.tokenizer.apply_chat_template(trained.pair["prompt"], add_generation_prompt=True, return_dict=False)
    settings = EvaluationSection(generations=GenerationsSection(max_new_tokens=60))
    ((ids, stopped),) = complete(Writer(policy, chat, trained.section), [prompt], settings, "answer")
    assert stopped
    assert transformers4.answer(folder, trained.pair["prompt"]) == (
        prompt,
        [*ids, chat.stop_id],
        chat.tokenizer.decode(ids, skip_special_tokens=True),
    )


def test_its_files_suit_other_loaders(trained, tmp_path):
    """What vLLM and llama.cpp's converter look at: see posttrain/serving/portable_files.py."""
    folder = exported(trained, tmp_path / "out", dtype="bf16")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<|system|>", "<|user|>", "<|assistant|>"]
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    for file in folder.glob("*.json"):  # places on this machine
        assert str(trained.section.base) not in file.read_text(), file.name
        assert str(trained.checkpoint.path) not in file.read_text(), file.name


def test_it_can_stay_an_adapter(trained, tmp_path):
    if trained.section.method == "full":
        with pytest.raises(UserError, match="contains full weights, not an adapter"):
            exported(trained, tmp_path / "out", adapter=True)
        return
    folder = exported(trained, tmp_path / "out", adapter=True)
    assert not (folder / "model.safetensors").exists()
    assert ModelCard.load(folder / "README.md").data.library_name == "peft"
    expected = logits(load_model(trained.base, trained.section, trained.checkpoint))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), expected)


def test_it_is_rounded_once_and_only_if_asked(trained, tmp_path):
    exact, rounded = exported(trained, tmp_path / "a"), exported(trained, tmp_path / "b", dtype="bf16")
    with (
        safe_open(exact / "model.safetensors", framework="pt") as one,
        safe_open(rounded / "model.safetensors", framework="pt") as other,
    ):
        for name in one.keys():  # noqa: SIM118 (not a dict)
            assert one.get_tensor(name).dtype == torch.float32
            assert torch.equal(one.get_tensor(name).bfloat16(), other.get_tensor(name))


def test_its_checksums_are_right_and_nothing_in_it_runs_code(trained, tmp_path):
    folder = exported(trained, tmp_path / "out")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    files = {file.name for file in folder.iterdir()}
    assert {"README.md", "config.json", "chat_template.jinja", "tokenizer.json", "SHA256SUMS"} <= files
    assert not {file for file in files if file.endswith((".bin", ".pt", ".pkl", ".py"))}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]  # and no scratch folder is left


def test_it_replaces_an_export_and_nothing_else(trained, tmp_path):
    folder = exported(trained, tmp_path / "out", dtype="bf16")
    exported(trained, folder, dtype="fp32")
    check_is_ours(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains notes\.txt, which is not part of an export"):
        exported(trained, folder)
    (folder / "notes.txt").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"contains config\.json"):
        exported(trained, folder)
    with pytest.raises(UserError, match="is a file"):
        exported(trained, folder / "config.json")


def test_an_export_that_fails_leaves_the_old_one(trained, tmp_path):
    folder = exported(trained, tmp_path / "out")
    before = (folder / "SHA256SUMS").read_bytes()
    if trained.section.method == "lora":
        gone = trained.section.model_copy(update={"base": "./gone"})
        with pytest.raises(UserError, match=r"\./gone"):
            export(ExportedModel(trained.checkpoint, gone, ModelCard("---\n{}\n---")), str(folder))
    with pytest.raises(UserError, match="name a folder, s3://bucket/folder or hf://organisation/name"):
        exported(trained, "ftp://somewhere")
    assert (folder / "SHA256SUMS").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def bucket(monkeypatch):
    """A store that speaks S3, with an empty bucket, as boto3 finds it in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    store = boto3.client("s3")
    store.create_bucket(Bucket="models")
    yield store
    server.stop()


def read(store, key: str) -> bytes:
    return store.get_object(Bucket="models", Key=key)["Body"].read()


def test_s3_gets_it_whole_and_then_points_to_it(trained, bucket, tmp_path, monkeypatch):
    local = exported(trained, tmp_path / "out", dtype="bf16")
    card = model_card("tiny", trained.checkpoint.manifest, adapter=False)
    model = ExportedModel(trained.checkpoint, trained.section, card)
    uri = export(model, "s3://models/tiny", ExportOptions(dtype="bf16"))
    latest = json.loads(read(bucket, "tiny/latest.json"))
    assert latest["uri"] == uri
    for file in local.iterdir():
        assert read(bucket, f"{uri.removeprefix('s3://models/')}/{file.name}") == file.read_bytes()
    assert set(latest["files"]) == {file.name for file in local.iterdir()}

    sent = []

    def break_off(path, where, upload=storage.upload_file):
        if path.name == "model.safetensors":
            raise UserError("the line is dead")
        sent.append(where)
        upload(path, where)

    monkeypatch.setattr(storage, "upload_file", break_off)
    with pytest.raises(UserError, match="the line is dead"):
        export(model, "s3://models/tiny", ExportOptions(dtype="fp32"))
    assert sent
    assert json.loads(read(bucket, "tiny/latest.json")) == latest


def test_s3_uploads_in_parts_are_compared_byte_by_byte(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PART_BYTES", 5 * 2**20)
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (12 * 2**12))  # 12 MiB: three parts
    storage.upload_file(path, "s3://models/weights")
    assert read(bucket, "weights") == path.read_bytes()
    written = bucket.head_object(Bucket="models", Key="weights")["ETag"]
    assert written.strip('"').endswith("-3")
    storage.upload_file(path, "s3://models/weights")  # the same: nothing is sent
    assert bucket.head_object(Bucket="models", Key="weights")["ETag"] == written
    bucket.put_object(Bucket="models", Key="weights", Body=bytes(12 * 2**20))  # other bytes, and no checksum
    storage.upload_file(path, "s3://models/weights")
    assert read(bucket, "weights") == path.read_bytes()


def test_s3_that_refuses_is_one_line(bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match=r"s3://no-such/file: the object store .*NoSuchBucket"):
        storage.upload_file(tmp_path / "file", "s3://no-such/file")
    with pytest.raises(UserError, match="has no bucket"):
        storage.upload_file(tmp_path / "file", "s3://")


class HubStandIn(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as an export speaks; it takes every file in the commit itself."""

    def do_GET(self) -> None:
        self.answer([{"type": "file", "path": name, "oid": "0", "size": 1} for name in self.server.files])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.url}/org/tiny"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        else:
            assert self.path.startswith("/api/models/org/tiny/commit/main")
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            self.answer({"commitUrl": f"{self.server.url}/org/tiny/commit/1", "commitOid": "1", "success": True})

    def answer(self, value) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubStandIn)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.commits = (
        ["README.md", "model-00001-of-00002.safetensors", "adapter_config.json", "LICENSE"],
        [],
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def test_the_hub_gets_it_as_one_commit_to_a_private_repository(trained, hub, tmp_path):
    local = exported(trained, tmp_path / "out")
    exported(trained, "hf://org/tiny")
    assert hub.created["name"] == "tiny"
    assert hub.created["organization"] == "org"
    assert hub.created["visibility"] == "private"
    (commit,) = hub.commits
    sent = {op["value"]["path"]: op["value"]["content"] for op in commit if op["key"] == "file"}
    assert {name: base64.b64decode(content) for name, content in sent.items()} == {
        file.name: file.read_bytes() for file in local.iterdir()
    }
    # What plain transformers would load beside the new weights goes; the rest of the repository stays.
    gone = {op["value"]["path"] for op in commit if op["key"] == "deletedFile"}
    assert gone == {"model-00001-of-00002.safetensors", "adapter_config.json"}


@pytest.mark.parametrize("dest", ["hf://tiny", "hf://org/ti ny", "hf://a/b/c"])
def test_a_name_that_the_hub_cannot_have_is_one_line(trained, dest):
    with pytest.raises(UserError, match=f"{dest}: (is not a valid destination|the upload to the Hub failed)"):
        exported(trained, dest)
