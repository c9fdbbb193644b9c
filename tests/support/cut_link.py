"""A TCP link that can be cut, or become slow, while it is used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class CutLink:
    """A link to `HOST:PORT`.

    Attributes:
        address: Of its near end.
        is_open: Whether new connections are carried; otherwise they are refused at once.
        connections: How many there have been.
        delay: Seconds that everything takes from the far end.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = ""
        self.is_open = True
        self.connections = 0
        self.delay = 0.0
        self._far = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break every connection, in the middle of whatever is on its way."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_open:
            writer.transport.abort()
            return
        self.connections += 1
        self._tasks.add(asyncio.ensure_future(self._connect(reader, writer)))

    async def close(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._far)
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, far_writer))
                group.create_task(self._carry_late(far_reader, writer))
        finally:
            self._writers -= both
            for each in both:
                each.close()

    # In order, also where the delay has been changed meanwhile.
    async def _carry_late(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    waiting.put_nowait((loop.time() + self.delay, data))
            waiting.put_nowait((loop.time() + self.delay, b""))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def cut_link(address: str) -> AsyncIterator[CutLink]:
    """A link to `HOST:PORT` that can be cut."""
    link = CutLink(address)
    server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
    async with server:
        link.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield link
    await link.close()
