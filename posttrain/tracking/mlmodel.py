"""The files that make a stored checkpoint a model of MLflow: `MLmodel`, and the tokenizer where MLflow looks for it.

The weights stay where they are, in `files/` beside `MLmodel`. `mlflow.transformers.load_model` then loads them.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import yaml

MLMODEL = "MLmodel"
WEIGHTS = "files"
TOKENIZER = "components/tokenizer"
OWN_TEMPLATE = "tokenizer"
"""The template's name in a manifest if it is the base's own."""


@dataclass(frozen=True)
class StoredModel:
    """What a checkpoint is, for `MLmodel`."""

    adapter: bool
    base: str
    """Name of the base, on the Hub or as a folder. Only an adapter needs it."""
    revision: str | None
    """The commit on the Hub; None for a folder."""
    template: str
    """Name of the chat template."""
    is_verifier: bool = False
    """Whether it scores answers instead of writing them."""


def mlmodel(stored: StoredModel) -> str:
    """Return the content of `MLmodel` beside the folder of a checkpoint's files."""
    flavor = {
        "task": "text-classification" if stored.is_verifier else "text-generation",
        "instance_type": "TextClassificationPipeline" if stored.is_verifier else "TextGenerationPipeline",
        "pipeline_model_type": f"AutoModelFor{'SequenceClassification' if stored.is_verifier else 'CausalLM'}",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
        "transformers_version": importlib.metadata.version("transformers"),
        "code": None,
        **(_of_adapter(stored) if stored.adapter else {"model_binary": WEIGHTS}),
    }
    content = {
        "flavors": {
            "python_function": {"loader_module": "mlflow.transformers", "python_version": platform.python_version()},
            "transformers": flavor,
        },
        "mlflow_version": importlib.metadata.version("mlflow"),
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    return yaml.safe_dump(content, sort_keys=False)


def _of_adapter(stored: StoredModel) -> dict[str, str | None]:
    """Return the flavor's keys of an adapter, which MLflow applies to its base.

    MLflow pins a base on the Hub to its commit only together with the base's own tokenizer, so an adapter that was trained with
    another template is applied to the newest commit.
    """
    if stored.revision is not None and stored.template == OWN_TEMPLATE:
        hub = {"source_model_name": stored.base, "source_model_revision": stored.revision}
        tokenizer = {"tokenizer_name": stored.base, "tokenizer_revision": stored.revision}
        return {"peft_adaptor": WEIGHTS, **hub, **tokenizer}
    return {"peft_adaptor": WEIGHTS, "local_base_model_path": stored.base}
