"""The page of a blind test on a port of this machine, which stores each vote as it comes."""

from __future__ import annotations

import importlib.util
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Generations
from posttrain.feedback.ab import ab_page, digest, shown_pairs
from posttrain.feedback.ballots import Vote
from posttrain.feedback.vote_store import VoteStore

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LARGEST_BODY_BYTES = 2**16
HEADERS = {
    # The token is in the address, which must not be sent elsewhere, and the page needs nothing from elsewhere.
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


class SentVote(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid")

    answers: str
    rater: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
    id: str
    vote: Vote


@dataclass(frozen=True)
class VoteServer:
    """Where the page is served."""

    store: VoteStore
    host: str = "127.0.0.1"
    port: int = 8765

    def check(self) -> None:
        """Check that the packages are installed and the port is free.

        Raises:
            UserError: if not.
        """
        if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
            raise UserError("ab serve needs packages that are not installed: pip install 'posttrain[serve]'")
        try:
            with socket.create_server((self.host, self.port)):
                pass
        except OSError as error:
            raise UserError(
                f"{self.host}:{self.port}: cannot be listened on: choose another --port or --host, or stop the server that uses it"
            ) from error

    def link(self, token: str) -> str:
        """Return the address to give to people."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}/?token={token}"


def vote_app(generations: Generations, store: VoteStore, token: str) -> Starlette:
    """Return the web application: the page, and where it sends votes. Both need the token of the link.

    Raises:
        UserError: no prompt has different answers of both SFT and DPO.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Route

    text, answers = ab_page(generations, is_served=True), digest(generations)
    known = {pair.id for pair in shown_pairs(generations)}

    def refused(reason: str, status: int) -> Response:
        return PlainTextResponse(reason, status, headers=HEADERS)

    def is_invited(request: Request) -> bool:
        return secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode())

    async def page(request: Request) -> Response:
        if not is_invited(request):
            return refused("This link is not complete: open the whole link that you were given.", 403)
        return HTMLResponse(text, headers=HEADERS)

    async def put(request: Request) -> Response:
        if not is_invited(request):
            return refused("The token is missing or wrong.", 403)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY_BYTES:
                return refused("The vote is too large.", 413)
        try:
            sent = SentVote.model_validate_json(body)
        except ValidationError:
            return refused("This is no vote.", 400)
        if sent.answers != answers or sent.id not in known:
            return refused("The page is of another run: load it again.", 409)
        await run_in_threadpool(store.put, answers, sent.rater, sent.id, sent.vote)
        return refused("Stored.", 200)

    return Starlette(routes=[Route("/", page), Route("/votes", put, methods=["POST"])])


def serve_votes(generations: Generations, server: VoteServer, token: str) -> None:
    """Serve the page until this process is told to stop."""
    import uvicorn

    app = vote_app(generations, server.store, token)
    uvicorn.run(app, host=server.host, port=server.port, log_level="warning", access_log=False)
