"""A model that is already loaded, as lm-evaluation-harness takes it: with batches that fit, and a count of cut prompts."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel

from posttrain.chat.template import Chat
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward.probe import left_padding_is_exact
from posttrain.models.loading import Model
from posttrain.models.precision import compute_dtype, is_16_bit

NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which a task says how many tokens may be generated."""


class LoadedModel(HFLM):  # type: ignore[misc]
    """A loaded model, with or without an adapter."""

    def __init__(self, model: Model, chat: Chat, section: ModelSection, tokens_per_batch: int) -> None:
        # The layers of an adapter are inside the model that it belongs to.
        super().__init__(
            pretrained=model.get_base_model() if isinstance(model, PeftModel) else model,
            tokenizer=chat.tokenizer,
            backend="causal",
            mixed_precision_dtype=compute_dtype(section) if is_16_bit(section) else None,
            chat_template_args=dict(chat.settings.kwargs),
        )
        self._tokens_per_batch = tokens_per_batch
        self._pads_exactly = left_padding_is_exact(model, chat.tokenizer.pad_token_id)
        self.n_cut = 0
        """Number of prompts that were longer than the model's context."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Return for each request the log-probability of its continuation, and whether that is the most likely one."""
        lengths = [len(self.tok_encode("".join(request.args))) for request in requests]
        self._prepare(lengths, self.max_length + 1)  # the last token is not read
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Return the log-probability of each whole text, which is read in windows."""
        self._prepare([self.max_length])
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Return the text that the model writes for each request.

        Raises:
            UserError: the task wants more tokens than the model's context has.
        """
        new = [_new_tokens(request.args[1], self.max_gen_toks) for request in requests]
        if max(new) >= self.max_length:
            raise UserError(
                f"evaluation.benchmarks: the task generates up to {max(new)} tokens, but the model's context has "
                f"{self.max_length}: set generation_kwargs.max_gen_toks in a YAML file of your own that includes the task's"
            )
        lengths = [len(self.tok_encode(request.args[0])) + n for request, n in zip(requests, new, strict=True)]
        self._prepare(lengths, self.max_length, generates=True)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _prepare(self, lengths: list[int], limit: int | None = None, *, generates: bool = False) -> None:
        """Count the prompts that are cut, and choose the number of rows of a batch."""
        limit = limit or self.max_length
        self.n_cut += sum(length > limit for length in lengths)
        n_rows = max(1, self._tokens_per_batch // min(max(lengths, default=1), limit))
        self.batch_size_per_gpu = n_rows if self._pads_exactly or not generates else 1


def _new_tokens(settings: dict[str, Any], default: int) -> int:
    return int(next((settings[name] for name in NEW_TOKENS if settings.get(name) is not None), default))
