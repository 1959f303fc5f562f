"""Attention over flat rows: which tokens see which, and kernels that compute only those products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


@dataclass(frozen=True)
class Segments:
    """The parts of a flat row: for each group the length of its prefix, then the lengths of its branches, in order.

    A token sees the earlier tokens of its own prefix or branch. A token of a branch also sees its group's prefix.
    """

    groups: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Lengths of each prefix with its first branch, and of each further branch, in the order of the row."""
        return [n for prefix, first, *others in self.groups for n in (prefix + first, *others)]

    def masks(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Return a mask for each branch except a group's first: (branch, prefix + branch), 0 for a visible token, else -inf."""
        made: list[Tensor] = self._once(
            "masks",
            lambda: [
                torch.full((n, prefix + n), -torch.inf, dtype=dtype, device=device).triu(prefix + 1)
                for prefix, _, *others in self.groups
                for n in others
            ],
        )
        return made

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a value that all layers share, made by the first layer that asks for it."""
        made = self.__dict__.setdefault("_made", {})
        if name not in made:
            made[name] = make()
        return made[name]

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return for each of the N tokens the index of its group, and the number of its branch in the row (0 in a prefix)."""
        group_sizes = torch.tensor([sum(group) for group in self.groups])
        is_branch = torch.tensor([i > 0 for group in self.groups for i in range(len(group))])
        branch_numbers = torch.where(is_branch, is_branch.cumsum(0), 0)
        return (
            torch.arange(len(self.groups)).repeat_interleave(group_sizes),
            branch_numbers.repeat_interleave(torch.tensor([n for group in self.groups for n in group])),
        )

    def block_mask(self, device: torch.device) -> BlockMask:
        """Return the mask of the whole row for FlexAttention."""

        def make() -> BlockMask:
            group, branch = (labels.to(device) for labels in self.labels())

            def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                own = (branch[query] == branch[key]) | (branch[key] == 0)
                return (group[query] == group[key]) & own & (query >= key)

            return create_block_mask(sees, None, None, len(group), len(group), device=str(device))

        made: BlockMask = self._once("block_mask", make)
        return made


def attention_name(setting: str, device: torch.device) -> str:
    """Return the name of the attention for flat rows: as set, else FlexAttention on a GPU and SDPA on a CPU."""
    flex = setting == "flex" or (setting == "auto" and device.type == "cuda")
    return "posttrain_flex" if flex else "posttrain_sdpa"


def no_mask(input_ids: Tensor) -> Tensor:
    """Return a four-dimensional mask, which transformers passes on unchanged. The attention uses the segments instead."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)


def _attends_in_fp32(query: Tensor) -> bool:
    """Return whether to compute in fp32: on a CPU the backward of torch 2.13's kernel is 3 times slower in bf16, even with AMX."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _by_segment(query: Tensor, key: Tensor, value: Tensor, segments: Segments, **options: Any) -> Tensor:
    """Run SDPA for each prefix with its first branch, and for each further branch. Takes and returns (1, heads, N, width)."""
    options["enable_gqa"] = query.shape[1] != key.shape[1]
    if _attends_in_fp32(query):
        with torch.autocast("cpu", enabled=False):
            return _by_segment(query.float(), key.float(), value.float(), segments, **options).to(query.dtype)
    parts = zip(*(tensor.split(segments.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    masks = iter(segments.masks(query.dtype, query.device))
    outputs = []
    for prefix, _, *others in segments.groups:
        q, first_k, first_v = next(parts)
        outputs.append(scaled_dot_product_attention(q, first_k, first_v, is_causal=True, **options))
        for _ in others:
            q, k, v = next(parts)
            k, v = torch.cat((first_k[:, :, :prefix], k), dim=2), torch.cat((first_v[:, :, :prefix], v), dim=2)
            outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=next(masks), **options))
    return torch.cat(outputs, dim=2)


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def _flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None, **_: Any) -> Tensor:
    attend = _compiled_flex() if query.is_cuda else flex_attention
    options = {"block_mask": segments.block_mask(query.device), "enable_gqa": query.shape[1] != key.shape[1]}
    result: Tensor = attend(query, key, value, scale=scale, **options)
    return result


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
        if segments is None:
            output, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
            return output, None
        output = attend(query, key, value, segments, scale=scaling, dropout_p=dropout)
        return output.transpose(1, 2).contiguous(), None

    return forward


@functools.cache
def register_attention() -> None:
    """Register the attention functions for flat rows with transformers, once per process."""
    for name, attend in (("posttrain_sdpa", _by_segment), ("posttrain_flex", _flex)):
        AttentionInterface.register(name, _interface(attend))
        AttentionMaskInterface.register(name, sdpa_mask)
