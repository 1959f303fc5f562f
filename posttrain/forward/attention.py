"""Attention over flat rows: which tokens see which, and the kernels that compute no more than that."""

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
    """How a flat row is made: for each group the length of its prefix, then those of its branches, in order.

    A token sees what stands before it in its own prefix or branch; a branch's token sees its group's prefix too.
    """

    groups: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Of each prefix together with its first branch, and of every other branch, in the row's order."""
        return [n for prefix, first, *others in self.groups for n in (prefix + first, *others)]

    def masks(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """For each branch but a group's first: (its length, prefix and itself), 0 where a token is seen, else -inf."""
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
        """What every layer of a batch needs, made by the first."""
        made = self.__dict__.setdefault("_made", {})
        if name not in made:
            made[name] = make()
        return made[name]

    def labels(self) -> tuple[Tensor, Tensor]:
        """For each of the N tokens the number of its group, and of its branch in the whole row (0 in a prefix)."""
        group_sizes = torch.tensor([sum(group) for group in self.groups])
        is_branch = torch.tensor([i > 0 for group in self.groups for i in range(len(group))])
        branch_numbers = torch.where(is_branch, is_branch.cumsum(0), 0)
        return (
            torch.arange(len(self.groups)).repeat_interleave(group_sizes),
            branch_numbers.repeat_interleave(torch.tensor([n for group in self.groups for n in group])),
        )

    def block_mask(self, device: torch.device) -> BlockMask:
        """The same for FlexAttention."""

        def make() -> BlockMask:
            group, branch = (labels.to(device) for labels in self.labels())

            def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                own = (branch[query] == branch[key]) | (branch[key] == 0)
                return (group[query] == group[key]) & own & (query >= key)

            return create_block_mask(sees, None, None, len(group), len(group), device=str(device))

        made: BlockMask = self._once("block_mask", make)
        return made


def attention_name(setting: str, device: torch.device) -> str:
    """The attention for flat rows: what the setting names, else FlexAttention on a GPU and SDPA elsewhere."""
    flex = setting == "flex" or (setting == "auto" and device.type == "cuda")
    return "posttrain_flex" if flex else "posttrain_sdpa"


def no_mask(input_ids: Tensor) -> Tensor:
    """A mask of four dimensions, which transformers hands to the attention as it is; there the segments count instead."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)


def _attends_in_fp32(query: Tensor) -> bool:
    """On a CPU: the backward of torch 2.13's kernel takes three times as long in bf16, AMX or not."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _by_segment(query: Tensor, key: Tensor, value: Tensor, segments: Segments, **options: Any) -> Tensor:
    """SDPA for each prefix with its first branch, and for each other branch: (1, heads, N, width) in and out."""
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
    """An attention as transformers calls it; without segments, as in generation, it is transformers' own SDPA."""

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


for _name, _attend in (("posttrain_sdpa", _by_segment), ("posttrain_flex", _flex)):
    AttentionInterface.register(_name, _interface(_attend))
    AttentionMaskInterface.register(_name, sdpa_mask)
