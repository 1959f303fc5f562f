"""What a step used and what its cache key consists of, stored with the step for `posttrain why` and the costs of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from zenml import get_step_context, log_metadata

from posttrain.orchestration.caching.cache_key import parts_of_step

KEY_PARTS, USAGE = "key_parts", "usage"
"""Names of the metadata entries of a step."""
USES_GPU = ("train_", "score_reference", "generate", "evaluate", "benchmark_", "preflight")
"""Beginnings of the names of steps that use the GPUs of their machine, if it has any."""


def record_key_parts(module: str) -> None:
    """Store the modules and packages that the cache key of the current step covers.

    A step that is never cached has none: it runs whether they have changed or not.
    """
    if get_step_context().step_run.config.enable_cache is not False:
        log_metadata({KEY_PARTS: parts_of_step(module)})


def record_usage(name: str, result: Any) -> None:
    """Store how many GPUs and tokens the current step has used, if any.

    Args:
        name: of the step.
        result: what it returned.
    """
    usage = {"n_gpus": n_gpus() if name.startswith(USES_GPU) else 0, "tokens": tokens_of(name, result)}
    if any(usage.values()):
        log_metadata({USAGE: usage})


def n_gpus() -> int:
    """Return the number of GPUs of this machine that the process may use."""
    torch = sys.modules.get("torch")  # a step that uses a GPU has imported it
    return int(torch.cuda.device_count()) if torch else 0


def tokens_of(name: str, result: Any) -> int:
    """Return the number of tokens that a step trained on, scored, wrote or made.

    Args:
        name: of the step.
        result: what it returned; of several results the first counts.
    """
    counting = next((count for start, count in _COUNTERS.items() if name.startswith(start)), None)
    first = result[0] if isinstance(result, tuple) else result
    return 0 if counting is None or first is None else int(counting(first))


def _of_checkpoint(checkpoint: Any) -> float:
    return float(checkpoint.manifest.metrics.get("n_train_tokens", 0))


def _of_pairs(tokens: Any) -> int:
    return sum(map(_in_table, tokens.tables.values()))


def _of_reference(reference: Any) -> int:
    return _in_table(reference.table)


def _of_generations(generations: Any) -> int:
    return sum(answer.n_tokens for exchange in generations.exchanges for answer in exchange.responses.values())


def _of_evaluation(evaluation: Any) -> int:
    """Each model scored each pair; the log-probabilities of SFT are those of the reference where there is DPO."""
    pairs = evaluation.pairs
    stages = {name.removesuffix("_chosen_logps") for name in pairs.column_names if name.endswith("_chosen_logps")}
    lengths = (sum(pairs[f"n_{part}_tokens"].to_pylist()) for part in ("prompt", "chosen", "rejected"))
    return int(sum(lengths)) * len(stages - ({"sft"} if "dpo" in stages else set()))


def _in_table(table: Any) -> int:
    """Return the number of token ids in a table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists: Iterable[Any] = (column for column in table.columns if pa.types.is_list(column.type))
    return sum(pc.sum(pc.list_value_length(column)).as_py() or 0 for column in lists)


_COUNTERS: dict[str, Callable[[Any], float]] = {
    "train_": _of_checkpoint,
    "tokenise": _of_pairs,
    "score_reference": _of_reference,
    "generate": _of_generations,
    "evaluate": _of_evaluation,
}
"""By the beginning of a step's name."""
