"""Questions to a model at an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from posttrain.config import EndpointSection
from posttrain.errors import UserError

WAIT_AT_MOST_S, ANSWER_AT_MOST_BYTES = 60.0, 2**20


class NoVerdict(Exception):
    """The model answered without what was asked for."""


class ChatEndpoint:
    """A model at an OpenAI-compatible endpoint."""

    def __init__(self, section: EndpointSection, setting: str) -> None:
        """Create a session.

        Args:
            setting: name of the section, for messages.

        Raises:
            UserError: the API key is not in the environment.
        """
        self._endpoint, self._setting = section, setting
        self.url = f"{str(section.base_url).rstrip('/')}/chat/completions"
        self._session = requests.Session()
        self._end_s = time.monotonic() + section.deadline_s
        retry = CappedRetry(
            total=section.n_retries,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods={"POST"},
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=section.concurrency))
        if section.api_key_env:
            key = os.environ.get(section.api_key_env)
            if not key:
                raise UserError(
                    f"{setting}.api_key_env: the environment variable {section.api_key_env} is not set: set it to the API "
                    "key, or remove the setting if the endpoint needs no key"
                )
            self._session.headers["Authorization"] = f"Bearer {key}"

    def body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {"model": self._endpoint.model, "messages": messages}
        if self._endpoint.temperature is not None:
            body["temperature"] = self._endpoint.temperature
        return body

    def answer(self, body: dict[str, Any]) -> str:
        """Return the endpoint's answer to a request, without the key if it repeats it.

        Raises:
            NoVerdict: the answer has no text, is too long or comes too late.
            requests.RequestException: the endpoint did not answer.
        """
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise NoVerdict(f"{self._setting}.deadline_s passed before this question was asked")
        timeout_s = min(self._endpoint.timeout_s, left_s)
        options: dict[str, Any] = {"timeout": timeout_s, "stream": True, "allow_redirects": False}
        with self._session.post(self.url, json=body, **options) as response:
            if response.is_redirect:
                raise NoVerdict("the endpoint redirects, and the key would go along: set base_url to the final address")
            response.raise_for_status()
            content = _content(response, time.monotonic() + timeout_s, f"{self._setting}.timeout_s")
        text = content.decode("utf-8", "replace")
        if sent := str(self._session.headers.get("Authorization", "")).removeprefix("Bearer "):
            text = text.replace(sent, "…")
        try:
            answer = json.loads(text)["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise NoVerdict(f"no chat completion: {text[:80]}") from error
        if not isinstance(answer, str):
            raise NoVerdict("the answer has no text")
        return answer


class CappedRetry(Retry):
    """Retries that wait no longer than `WAIT_AT_MOST_S`, whatever the endpoint asks for."""

    def get_retry_after(self, response: Any) -> float | None:
        wait_s = super().get_retry_after(response)
        return None if wait_s is None else min(wait_s, WAIT_AT_MOST_S)


def _content(response: requests.Response, end_s: float, setting: str) -> bytes:
    """Return the body of a response. The timeout of requests is for each read, and says nothing about all of them.

    Raises:
        NoVerdict: the body is too long, or takes too long to arrive.
    """
    content = b""
    for piece in response.iter_content(2**16):
        content += piece
        if len(content) > ANSWER_AT_MOST_BYTES:
            raise NoVerdict(f"the answer has more than {ANSWER_AT_MOST_BYTES} bytes")
        if time.monotonic() > end_s:
            raise NoVerdict(f"the answer took longer than {setting}")
    return content
