"""`posttrain export`, `chat` and `serve`: use a trained model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from posttrain.cli.outcome import clean_errors, echo


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="[VERSION] DEST")
@click.option("--adapter", is_flag=True, help="Export only the LoRA adapter instead of merging it into its base.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Dtype of the weights; auto: the base model's.",
)
@click.option("--public", is_flag=True, help="On the Hub: make a new repository public.")
def export(places: tuple[str, ...], adapter: bool, dtype: Any, public: bool) -> None:
    """Export a model to a folder, S3 or the Hugging Face Hub.

    Plain transformers can load the export. DEST is a folder, s3://bucket/folder or hf://organisation/name. VERSION is a
    model version (demo:3, demo:production), a checkpoint version (dpo_checkpoint:3) or a folder. Without VERSION, the
    model in production is exported.
    """
    if len(places) > 2:
        raise click.UsageError("give at most a VERSION and a DEST")
    with clean_errors():
        from posttrain.orchestration.model_versions.versions import find_version
        from posttrain.reporting.model_card import model_card
        from posttrain.serving.export import ExportedModel, ExportOptions
        from posttrain.serving.export import export as export_model

        version = find_version(places[0] if len(places) == 2 else None)
        card = model_card(version.name, version.checkpoint.manifest, version.report, adapter=adapter)
        exported = ExportedModel(version.checkpoint, version.model, card, version.report)
        where = export_model(exported, places[-1], ExportOptions(adapter, dtype, private=not public))
    echo(f"{version.name} is at {where}")


@click.command()
@click.argument("versions", nargs=-1)
@click.option("--prompt", "prompts", multiple=True, help="Ask this instead of reading prompts. May be repeated.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0: greedy decoding.",
)
def chat(versions: tuple[str, ...], prompts: tuple[str, ...], max_new_tokens: int, temperature: float) -> None:
    """Chat with several models side by side.

    VERSIONS are named as for `export`. Without them, the SFT and the DPO model of the last run answer.
    """
    with clean_errors():
        from posttrain.orchestration.model_versions.versions import find_version, stages_of
        from posttrain.reporting.plain_console import PlainConsole
        from posttrain.serving.side_by_side import converse, load_speaker

        found = [find_version(name) for name in versions] or stages_of(None)
        speakers = [load_speaker(version.name, version.checkpoint, version.model) for version in found]
        asked = prompts or iter(_read_prompt, None)
        converse(speakers, asked, PlainConsole(), max_new_tokens=max_new_tokens, temperature=temperature)


@click.command()
@click.argument("version", required=False)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all of this machine's."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--follow", is_flag=True, help="Serve the model in production, and change to another one when it is promoted."
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "transformers", "vllm"]),
    default="auto",
    show_default=True,
    help="Server; auto: vLLM where it is installed, else transformers, which also runs on a CPU.",
)
def serve(version: str | None, host: str, port: int, follow: bool, engine: Any) -> None:
    """Serve a model with OpenAI's API.

    VERSION is named as for `export`, or is the folder of an export. Without it, the model in production is served. With
    --follow, VERSION may only be a model (demo:production).
    """
    if follow and version is not None and not version.endswith(":production"):
        raise click.UsageError(
            f"--follow serves the model in production: name a model ({version.partition(':')[0]}:production)"
        )
    with clean_errors():
        from posttrain.serving.endpoint import ModelServer
        from posttrain.serving.endpoint import serve as serve_model

        endpoint = ModelServer(host, port, engine)
        endpoint.check()
        from posttrain.orchestration.model_versions.served_versions import ServedVersions

        with tempfile.TemporaryDirectory(prefix="posttrain-served-") as scratch:
            versions = ServedVersions(version, Path(scratch))
            serve_model(versions.export(), endpoint, click.echo, versions.changed if follow else None)


def _read_prompt() -> str | None:
    """Return a line from the terminal; None at the end of the input."""
    try:
        return str(click.prompt("you", prompt_suffix="> ", err=True))
    except click.Abort:
        return None
