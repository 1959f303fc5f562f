"""Attention over flat rows: which tokens see which, and kernels that compute only those products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from posttrain.forward.block_mask import build_block_mask
from posttrain.forward.flex import attend_by_blocks, in_one_dtype, row_length

BY_SEGMENTS, BY_BLOCKS = "posttrain_segments", "posttrain_blocks"
"""Names under which transformers knows the attention functions. With sdpa or flex in them, models without support would refuse."""
KERNELS = {BY_SEGMENTS: "sdpa", BY_BLOCKS: "flex"}


@dataclass(frozen=True)
class Segments:
    """The parts of a flat row: for each group the length of its prefix, then the lengths of its branches, in order.

    A token sees the earlier tokens of its own prefix or branch. A token of a branch also sees its group's prefix. In a layer with
    a sliding window of w tokens it sees only those less than w positions before it, counted from the beginning of its prefix.
    """

    groups: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Lengths of each prefix with its first branch, and of each further branch, in the order of the row."""
        return [n for prefix, first, *others in self.groups for n in (prefix + first, *others)]

    def masks(self, dtype: torch.dtype, device: torch.device, window: int | None = None) -> list[Tensor | None]:
        """Return a mask for each of `lengths`: (branch, prefix + branch), 0 for a visible token, else -inf.

        None stands for the plain causal mask of a prefix with its first branch.
        """

        def make() -> list[Tensor | None]:
            made: list[Tensor | None] = []
            for prefix, first, *others in self.groups:
                n = prefix + first
                made.append(band(n, n, window, dtype, device) if window is not None and window < n else None)
                made += [band(n, prefix + n, window, dtype, device) for n in others]
            return made

        kept: list[Tensor | None] = self._once(f"masks {window}", make)
        return kept

    @property
    def windows(self) -> set[int]:
        """The sliding windows of the layers that have used these segments."""
        seen: set[int] = self._once("windows", set)
        return seen

    def positions(self) -> Tensor:
        """Return the position of each of the N tokens, counted from the beginning of its group's prefix."""
        return torch.cat(
            [
                torch.arange(n) + (prefix if i else 0)
                for prefix, *branches in self.groups
                for i, n in enumerate((prefix, *branches))
            ]
        )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a value that all layers share, made by the first layer that asks for it."""
        made = self.__dict__.setdefault("_made", {})
        if name not in made:
            made[name] = make()
        return made[name]

    def padded(self, n: int) -> Segments:
        """Return the segments with a further group, which nothing else sees and which fills the row to n tokens."""
        n_tokens = sum(map(sum, self.groups))
        if n == n_tokens:
            return self

        def make() -> Segments:
            longer = Segments((*self.groups, (0, n - n_tokens)))
            longer._once("windows", lambda: self.windows)
            return longer

        made: Segments = self._once(f"padded {n}", make)
        return made

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return for each of the N tokens the index of its group, and the number of its branch in the row (0 in a prefix)."""
        group_sizes = torch.tensor([sum(group) for group in self.groups])
        is_branch = torch.tensor([i > 0 for group in self.groups for i in range(len(group))])
        branch_numbers = torch.where(is_branch, is_branch.cumsum(0), 0)
        return (
            torch.arange(len(self.groups)).repeat_interleave(group_sizes),
            branch_numbers.repeat_interleave(torch.tensor([n for group in self.groups for n in group])),
        )

    def block_mask(self, device: torch.device, window: int | None = None) -> BlockMask:
        """Return the mask of the whole row for FlexAttention."""

        def make() -> BlockMask:
            return build_block_mask(self.groups, (*self.labels(), self.positions()), device, window)

        made: BlockMask = self._once(f"block_mask {window}", make)
        return made


def band(n_queries: int, n_keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask of the last `n_queries` of `n_keys` tokens: 0 for the earlier tokens within the window, else -inf."""
    first = n_keys - n_queries
    hidden = torch.full((n_queries, n_keys), -torch.inf, dtype=dtype, device=device)
    mask = hidden.triu(first + 1)
    return mask if window is None else mask + hidden.tril(first - window)


def attention_name(setting: str, device: torch.device) -> str:
    """Return the name of the attention for flat rows: as set, else FlexAttention on a GPU and SDPA on a CPU."""
    flex = setting == "flex" or (setting == "auto" and device.type == "cuda")
    return BY_BLOCKS if flex else BY_SEGMENTS


def no_mask(input_ids: Tensor) -> Tensor:
    """Return a four-dimensional mask, which transformers passes on unchanged. The attention uses the segments instead."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)


def _attends_in_fp32(query: Tensor) -> bool:
    """Return whether to compute in fp32: on a CPU the backward of torch 2.13's kernel is 3 times slower in bf16, even with AMX."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


@dataclass(frozen=True)
class _Layer:
    """How one layer attends."""

    scale: float | None
    dropout: float
    window: int | None
    sinks: Tensor | None
    """(heads,) logits that take part in each softmax without a value (gpt-oss)."""
    softcap: float | None
    """Largest absolute score: scores s become softcap * tanh(s / softcap) (Gemma 2)."""

    @property
    def is_plain(self) -> bool:
        """Whether SDPA alone computes it."""
        return self.sinks is None and self.softcap is None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: _Layer) -> Tensor:
    """Run SDPA. Without a mask, each of the last tokens sees itself and all before it."""
    if layer.softcap is not None:
        return _attend_capped(query, key, value, mask, layer)
    options: dict[str, Any] = {"scale": layer.scale, "dropout_p": layer.dropout}
    options["enable_gqa"] = query.shape[1] != key.shape[1]
    if options["enable_gqa"] and repeats_keys(query.device, has_mask=mask is not None or layer.sinks is not None):
        key, value = _for_each_query_head(key, value, query.shape[1])
        options["enable_gqa"] = False
    if layer.sinks is None:
        if mask is None:
            return scaled_dot_product_attention(query, key, value, is_causal=True, **options)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    # A further key whose product with every query is the sink, and whose value is 0: one more component carries it.
    options["scale"] = layer.scale if layer.scale is not None else query.shape[-1] ** -0.5
    n_batch, n_heads, n_queries, _ = query.shape
    if mask is None:
        mask = band(n_queries, key.shape[2], None, query.dtype, query.device)
    sink = (layer.sinks.to(query.dtype) / options["scale"]).view(1, n_heads, 1, 1).expand(n_batch, -1, n_queries, 1)
    query = torch.cat((query, sink), dim=-1)
    key = pad(key, (0, 1, 1, 0))
    key = torch.cat((pad(key.new_ones(1), (key.shape[-1] - 1, 0)).expand_as(key[:, :, :1]), key[:, :, 1:]), dim=2)
    seen: Any = True if mask.dtype == torch.bool else 0.0
    mask = pad(mask, (1, 0), value=seen)
    return scaled_dot_product_attention(query, key, pad(value, (0, 0, 1, 0)), attn_mask=mask, **options)


def repeats_keys(device: torch.device, *, has_mask: bool) -> bool:
    """Return whether to repeat shared keys for SDPA: on CUDA its only kernel with a mask and `enable_gqa` keeps all scores."""
    return device.type == "cuda" and has_mask


def _for_each_query_head(key: Tensor, value: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    """Return keys and values repeated for the query heads that share them."""
    n_shared = n_heads // key.shape[1]
    return key.repeat_interleave(n_shared, dim=1), value.repeat_interleave(n_shared, dim=1)


def _attend_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: _Layer) -> Tensor:
    """Attend in single operations, because no kernel caps scores on a CPU."""
    assert layer.softcap is not None
    key, value = _for_each_query_head(key, value, query.shape[1])
    scale = layer.scale if layer.scale is not None else query.shape[-1] ** -0.5
    scores = layer.softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / layer.softcap))
    if mask is None:
        mask = band(query.shape[2], key.shape[2], None, query.dtype, query.device)
    hidden = ~mask if mask.dtype == torch.bool else mask < 0
    scores = scores.masked_fill(
        hidden, torch.finfo(scores.dtype).min
    )  # finite: padding sees nothing, and must not be NaN
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.nn.functional.dropout(weights, layer.dropout) @ value


def _by_segment(query: Tensor, key: Tensor, value: Tensor, segments: Segments, layer: _Layer) -> Tensor:
    """Run SDPA for each prefix with its first branch, and for each further branch. Takes and returns (1, heads, N, width)."""
    query, key, value = in_one_dtype(query, key, value)
    if _attends_in_fp32(query):
        with torch.autocast("cpu", enabled=False):
            return _by_segment(query.float(), key.float(), value.float(), segments, layer).to(query.dtype)
    if len(segments.lengths) == 1:
        return _attend(query, key, value, segments.masks(query.dtype, query.device, layer.window)[0], layer)
    parts = zip(*(tensor.split(segments.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    masks = iter(segments.masks(query.dtype, query.device, layer.window))
    outputs = []
    for prefix, _, *others in segments.groups:
        q, first_k, first_v = next(parts)
        outputs.append(_attend(q, first_k, first_v, next(masks), layer))
        for _ in others:
            q, k, v = next(parts)
            k, v = torch.cat((first_k[:, :, :prefix], k), dim=2), torch.cat((first_v[:, :, :prefix], v), dim=2)
            outputs.append(_attend(q, k, v, next(masks), layer))
    return torch.cat(outputs, dim=2)


def _flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, layer: _Layer) -> Tensor:
    """Run FlexAttention for the whole row. Takes and returns (1, heads, N, width)."""
    query, key, value = in_one_dtype(query, key, value)
    n = query.shape[2]
    if query.is_cuda and (n_padded := row_length(n)) != n:  # a row that `pad_row` has not padded
        query, key, value = (pad(tensor, (0, 0, 0, n_padded - n)) for tensor in (query, key, value))
        segments = segments.padded(n_padded)
    output = attend_by_blocks((query, key, value), segments.block_mask(query.device, layer.window), layer)
    return output[:, :, :n]


def _interface(attend: Any) -> Any:
    """Return an attention function for transformers. Without segments, as in generation, it is transformers' own SDPA."""

    def forward(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        segments: Segments | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        layer = _Layer(scaling, dropout, options.get("sliding_window"), options.get("s_aux"), options.get("softcap"))
        if segments is None and layer.is_plain:
            output, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
            return output, None
        if segments is None:
            seen = attention_mask if attention_mask is None else attention_mask[..., : key.shape[2]]
            output = _attend(query, key, value, seen, layer)
        else:
            if layer.window is not None:
                segments.windows.add(layer.window)
            output = attend(query, key, value, segments, layer)
        return output.transpose(1, 2).contiguous(), None

    return forward


@functools.cache
def register_attention() -> None:
    """Register the attention functions for flat rows with transformers, once per process."""
    for name, attend in ((BY_SEGMENTS, _by_segment), (BY_BLOCKS, _flex)):
        AttentionInterface.register(name, _interface(attend))
        AttentionMaskInterface.register(name, sdpa_mask)
