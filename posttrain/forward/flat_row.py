"""The flat row: prompts and responses laid out without padding and without repeated prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.forward.attention import Segments


@dataclass
class _FlatRow:
    """Tokens of a flat row that is being built."""

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    predicting: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def append(self, sequence: list[int], start: int, end: int, n_prompt: int) -> list[int]:
        """Append the tokens from start to end, and return the indices in `targets` of the response tokens they predict."""
        offset = len(self.input_ids) - start
        self.input_ids.extend(sequence[start:end])
        self.position_ids.extend(range(start, end))
        first = max(start, n_prompt - 1)
        self.predicting.extend(range(offset + first, offset + end))
        self.targets.extend(sequence[first + 1 : end + 1])
        return list(range(len(self.targets) - max(0, end - first), len(self.targets)))

    def append_group(
        self, prompt: list[int], responses: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, ...], list[list[int]]]:
        """Append a prompt and distinct responses to it.

        Returns:
            The lengths of the prefix and of each branch; and for each response the indices of its tokens in `targets`.
        """
        sequences = [[*prompt, *response] for response in responses]
        n_prefix = 0 if len(sequences) == 1 else max(0, _n_common(sequences) - 1)
        shared = self.append(sequences[0], 0, n_prefix, len(prompt))
        indices = [shared + self.append(one, n_prefix, len(one) - 1, len(prompt)) for one in sequences]
        return (n_prefix, *(len(one) - 1 - n_prefix for one in sequences)), indices


def lay_out(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> dict[str, Any]:
    """Lay out n responses, each after its prompt, as one flat row of N tokens without padding.

    The last token of each sequence is not part of the row: it predicts nothing, and no other token sees it.

    Returns:
        input_ids, position_ids: (1, N).
        segments: which of the N tokens see which.
        predicting: (T,) positions whose next token belongs to a response.
        targets: (T,) that next token.
        rows: (n, longest response) index in `targets` of each response token; padded with 0.
        mask: (n, longest response) False where `rows` is padding.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)
    row, lengths = _FlatRow(), []
    rows = torch.zeros(len(responses), max(map(len, responses)), dtype=torch.long)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    for members in groups.values():
        distinct = list(dict.fromkeys(tuple(responses[i]) for i in members))
        group_lengths, indices = row.append_group(prompts[members[0]], distinct)
        lengths.append(group_lengths)
        of_response = dict(zip(distinct, indices, strict=True))
        for i in members:
            places = of_response[tuple(responses[i])]
            rows[i, : len(places)] = torch.tensor(places)
            mask[i, : len(places)] = True
    return {
        "input_ids": torch.tensor([row.input_ids]),
        "position_ids": torch.tensor([row.position_ids]),
        "segments": Segments(tuple(lengths)),
        "predicting": torch.tensor(row.predicting),
        "targets": torch.tensor(row.targets),
        "rows": rows,
        "mask": mask,
    }


def pad_row(flat: dict[str, Any], n: int) -> dict[str, Any]:
    """Return a flat row of n tokens: the end is a group of its own, which is not trained and which no other token sees."""
    n_more = n - flat["input_ids"].shape[1]
    if not n_more:
        return flat
    position_ids = torch.arange(n_more, device=flat["position_ids"].device)[None]
    return {
        **flat,
        "input_ids": torch.nn.functional.pad(flat["input_ids"], (0, n_more)),
        "position_ids": torch.cat((flat["position_ids"], position_ids), dim=1),
        "segments": flat["segments"].padded(n),
    }


def _n_common(sequences: list[list[int]]) -> int:
    """Return the length of the sequences' longest common prefix."""
    smallest, largest = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(smallest, largest, strict=False)) if a != b), len(smallest))


def to_device(flat: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on a device."""
    return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in flat.items()}
