"""Loading weights: the base model, and a checkpoint on top of it, in the precision that the machine is good at."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from posttrain.chat.template import Chat, prepare_chat
from posttrain.config import LoraSection, ModelSection
from posttrain.data.demo import base_model as demo_base
from posttrain.data.demo import pairs as demo
from posttrain.errors import UserError
from posttrain.models.checkpoint import Base, Checkpoint, file_digest
from posttrain.storage.s3 import cache_dir
from posttrain.training.plan import GIB, local_base, read_shape

Model: TypeAlias = PreTrainedModel | PeftModel
_HERE = {"local_files_only": True, "trust_remote_code": False}
"""How a folder is loaded: transformers would ask on the terminal whether to run the code in it."""
MIN_AMX_WIDTH = 384
"""Hidden size from which AMX gains more than the casts to bf16 cost: below, a step took up to twice as long in bf16."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def resolve_base(section: ModelSection) -> Base:
    """The base model that the config names, pinned: a commit for a Hub id, a digest of its files for a folder.

    Raises:
        UserError: neither a folder with a model nor a Hub id that can be reached or is cached.
    """
    folder = _local_base(section)
    if folder is not None:
        names = sorted(
            file.name
            for file in folder.iterdir()
            if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")
        )
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise UserError(
                f"model.base: {section.base} holds no config.json with *.safetensors beside it: name a transformers model "
                "folder (convert other weights with save_pretrained)"
            )
        lines = "".join(f"{name} {file_digest(folder / name)}\n" for name in names)
        digest, commit = hashlib.sha256(lines.encode()).hexdigest(), None
    else:
        commit = _commit_on_hub(section)
        digest = f"hub:{section.base}@{commit}"
    template = Path(section.chat_template or "")
    template_digest = file_digest(template) if template.suffix == ".jinja" and template.is_file() else None
    return Base(id=section.base, revision=commit, digest=digest, template_digest=template_digest)


def load_chat(base: Base, section: ModelSection, checkpoint: Checkpoint | None = None) -> Chat:
    """The tokenizer and template of a checkpoint, or of the base with the template that the config names."""
    if checkpoint is not None:
        template = checkpoint.manifest.template
        if section.chat_template and Path(section.chat_template).name != template:
            raise UserError(
                f"model.chat_template: {section.chat_template} is asked for, but {checkpoint.path} was trained with {template}: "
                "drop the setting, or train SFT again"
            )
        with _without_its_code(str(checkpoint.path)):
            chat = prepare_chat(AutoTokenizer.from_pretrained(checkpoint.path, **_HERE), None)
        return Chat(chat.tokenizer, template, chat.stop_id)
    source, options = base_source(base, section)
    with _without_its_code(source):
        return prepare_chat(AutoTokenizer.from_pretrained(source, **options), section.chat_template)


def load_model(
    base: Base, section: ModelSection, checkpoint: Checkpoint | None = None, *, trainable: bool = False
) -> Model:
    """A model ready for its stage, on the device it will run on.

    Args:
        checkpoint: whose weights or adapter to load; None for the base itself.
        trainable: with method lora or qlora, whether an adapter is to be trained: the checkpoint's own, so that
            training starts exactly there, else a fresh one.

    Raises:
        UserError: the checkpoint belongs to another base, or the machine lacks what the method needs.
    """
    if checkpoint is not None and checkpoint.manifest.base.digest != base.digest:
        raise UserError(
            f"{checkpoint.path}: was trained from {checkpoint.manifest.base.id} ({checkpoint.manifest.base.digest[:16]}), but "
            f"model.base is {base.id} ({base.digest[:16]}): name the base that it belongs to"
        )
    if device().type == "cpu":
        _keep_freed_memory()
    full = checkpoint is not None and checkpoint.manifest.kind == "full"
    if checkpoint is not None and not full and section.method == "full":
        raise UserError(
            f"model.method: full cannot train on from {checkpoint.path}, which holds an adapter: set it to lora"
        )
    if full:
        assert checkpoint is not None
        source, options = str(checkpoint.path), dict(_HERE)
    else:
        source, options = base_source(base, section)
    model = _load_weights(source, section, options)
    if checkpoint is not None and not full:
        model = PeftModel.from_pretrained(model, str(checkpoint.path), is_trainable=trainable)
        own = model.peft_config["default"]
        if section.lora != LoraSection() and (own.r, own.lora_alpha) != (section.lora.rank, section.lora.alpha):
            raise UserError(
                f"model.lora: rank {section.lora.rank} and alpha {section.lora.alpha:g} are asked for, but the adapter of "
                f"{checkpoint.path} has {own.r} and {own.lora_alpha:g}: drop the settings, or train SFT again"
            )
    elif trainable and section.method != "full":
        model = _with_adapter(model, section)
    if isinstance(model, PeftModel):
        _leave_casts_to_autocast(model)
    return model if section.method == "qlora" else model.to(device())


def device() -> torch.device:
    """Where models run: the first GPU of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@functools.cache
def _keep_freed_memory() -> None:
    """Lets this process keep what its tensors free, where the C library would return it and fetch it again in every step.

    A page fault for each 4 KiB of every large tensor took up to an eighth of a step on two cores. Only glibc has the call.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(option, 2**30)


def free_gib() -> float:
    """Memory that is free where models run: on the GPU, else on this machine within the limit of its container."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]) / GIB
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without limit
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free / GIB


def uses_bf16(section: ModelSection) -> bool:
    """Whether matrix products run in bfloat16: by itself only where that is faster, a GPU or a CPU with AMX and a wide model."""
    if section.precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.cpu._is_amx_tile_supported()) and _width(section.base, section.revision) >= MIN_AMX_WIDTH
    return section.precision == "bf16"


@functools.cache
def _width(base: str, revision: str | None) -> float:
    """The hidden size of a base; infinite where its shape is not on this machine."""
    shape = read_shape(ModelSection(base=base, revision=revision))
    return shape.hidden_size if shape else math.inf


def autocast(section: ModelSection) -> contextlib.AbstractContextManager[Any]:
    """The precision context of a forward pass outside the trainer: the same as inside it."""
    if uses_bf16(section):
        return torch.autocast(device().type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _local_base(section: ModelSection) -> Path | None:
    """The folder of a base that is on this machine, None for a Hub id."""
    return demo_folder() if section.base == "demo" else local_base(section.base)


def demo_folder() -> Path:
    """The folder of the demo's base model, built on first use, whole or not at all."""
    sources = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (demo, demo_base))
    folder = cache_dir() / f"demo-base-{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            built = demo_base.build_base(Path(scratch) / "base")
            with contextlib.suppress(OSError):  # another process was first: both made the same bytes
                built.rename(folder)
    return folder


def _commit_on_hub(section: ModelSection) -> str:
    """The commit that a Hub id and revision stand for: asked of the Hub, else read from the local cache."""
    try:
        return str(HfApi().model_info(section.base, revision=section.revision, timeout=20).sha)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cached = try_to_load_from_cache(section.base, "config.json", revision=section.revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: {section.base} at revision {section.revision or 'main'} is not in the local cache and the Hub does "
            f"not give it ({reason}): check the name, the network, and HF_TOKEN for a gated model"
        ) from error


def base_source(base: Base, section: ModelSection) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` needs to find the base's files."""
    folder = _local_base(section)
    if folder is not None:
        return str(folder), dict(_HERE)
    # The code's revision too: a model may name code of another repository, which has no such commit.
    pinned = {"code_revision": base.revision} if section.trust_remote_code else {}
    return base.id, {"revision": base.revision, "trust_remote_code": section.trust_remote_code, **pinned}


@contextlib.contextmanager
def _without_its_code(source: str) -> Iterator[None]:
    """Turns what transformers says of a model that cannot be loaded without running its own code into an answer."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{source}: can only be loaded by running code that ships with it, which is refused: choose a model that transformers "
            "knows, or, for one on the Hub whose code you have read, set model.trust_remote_code and pin model.revision"
        ) from error


def _load_weights(source: str, section: ModelSection, options: dict[str, Any]) -> PreTrainedModel:
    # An optimiser step is far below the resolution of bf16, so weights that are trained stay in fp32.
    dtype = torch.bfloat16 if uses_bf16(section) and section.method != "full" else torch.float32
    options = {**options, "dtype": dtype, "use_safetensors": True}
    if section.attention != "auto":
        options["attn_implementation"] = section.attention
    if section.method == "qlora":
        if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "model.method: qlora needs a CUDA GPU and bitsandbytes, which this machine lacks: set it to lora, or run on "
                "a GPU with `pip install -e '.[gpu]'`"
            )
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": device()}
    with _without_its_code(source):
        return AutoModelForCausalLM.from_pretrained(source, **options)


class _OutsideOfAutocast:
    """True where no `autocast` is on."""

    def __bool__(self) -> bool:
        return not torch.is_autocast_enabled(device().type)


def _leave_casts_to_autocast(model: PeftModel) -> None:
    """Keeps PEFT 0.21 from casting a layer's bf16 input to the fp32 of its adapter, where `autocast` casts it straight back."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = _OutsideOfAutocast()


def _with_adapter(model: PreTrainedModel, section: ModelSection) -> PeftModel:
    if section.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = section.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except NoMatchingPeftModuleError as error:
        names = sorted(
            {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        )
        raise UserError(
            f"model.lora.target_modules: the model has no layer named in {lora.target_modules}: it has {', '.join(names)}; name "
            "some of these, or all-linear"
        ) from error
    assert isinstance(adapted, PeftModel)
    return adapted
