"""A model of lm-evaluation-harness that answers nothing and remembers what it was asked."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


class Recorder(LM):  # type: ignore[misc]
    """Records all prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[list[Any]] = []
        """Kind and arguments of each request."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Record the requests, and find all continuations equally likely."""
        self._record(requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Record the requests, and find every text certain."""
        self._record(requests)
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Record the requests, and answer nothing."""
        self._record(requests)
        return [""] * len(requests)

    def _record(self, requests: list[Instance]) -> None:
        self.prompts += [[request.request_type, *request.args] for request in requests]
