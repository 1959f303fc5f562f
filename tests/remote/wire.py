"""The way to a server, which can be cut, and on which bytes are counted."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit


class Wire:
    """Passes TCP on to a server. Clients use `url` in place of the server's own address.

    Attributes:
        n_sent: bytes that clients have sent, heads of requests included.
        n_received: bytes that the server has answered with.
    """

    def __init__(self, server: str) -> None:
        self._server = urlsplit(server)
        assert self._server.scheme == "http", f"{server}: only http can be passed on"
        self.n_sent = self.n_received = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._port = 0
        self._do(self._mend())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Inside, what is open breaks off, and nothing can connect."""
        self._do(self._cut())
        try:
            yield
        finally:
            self._do(self._mend())

    def close(self) -> None:
        self._do(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _mend(self) -> None:
        self._listening = await asyncio.start_server(self._pass_on, "127.0.0.1", self._port)
        self._port = self._listening.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        self._listening.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _pass_on(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.add(to_client)
        with suppress(OSError):
            server, to_server = await asyncio.open_connection(self._server.hostname, self._server.port)
            self._writers.add(to_server)
            await asyncio.gather(self._copy(client, to_server, "n_sent"), self._copy(server, to_client, "n_received"))
            self._writers.discard(to_server)
        to_client.close()
        self._writers.discard(to_client)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, counter: str) -> None:
        with suppress(OSError):
            while block := await source.read(1 << 16):
                setattr(self, counter, getattr(self, counter) + len(block))
                target.write(block)
                await target.drain()
        target.close()
