"""The gateways that a proxy may pass requests on to: where they are, and which of them does not answer.

There may be two: the first serves, the other stands by, so that one that is killed or hangs costs no request that has
no answer yet. Where they are stands in the home, and may change at any time. Each is asked for its health, over a
connection of its own; one that lets it wait is left until it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Protocol

FILE = "gateway.json"  # in the home: [host, port], or a list of such
ASK_EVERY_S = 1.0
ANSWERS_WITHIN_S = 4.0
ASKS = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"

Place = tuple[str, int]


class Moves(Protocol):
    def move(self) -> None:
        """Away from its gateway, which hangs, as far as that loses nothing."""


class Upstreams:
    def __init__(self, home: Path) -> None:
        self._file = home / FILE
        self._hung: set[Place] = set()
        self._asking: dict[Place, asyncio.Task[None]] = {}
        self._on: dict[Place, set[Moves]] = {}

    def places(self) -> list[Place]:
        """All of them, those that answer first. Raises FileNotFoundError, ValueError where none is written down."""
        found = json.loads(self._file.read_text())
        listed = [found] if found and isinstance(found[0], str) else found
        places = [(str(host), int(port)) for host, port in listed]
        return sorted(places, key=lambda place: place in self._hung)

    def join(self, caller: Moves, place: Place) -> None:
        self._on.setdefault(place, set()).add(caller)

    def leave(self, caller: Moves, place: Place) -> None:
        here = self._on.get(place, set())
        here.discard(caller)
        if not here:
            self._on.pop(place, None)

    async def watch(self) -> None:
        """For ever: ask each, where there are several."""
        while True:
            places: list[Place] = []
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError, IndexError):
                places = self.places()
            self._hung &= set(places)
            for place in places if len(places) > 1 else ():
                if (asking := self._asking.get(place)) is None or asking.done():
                    self._asking[place] = asyncio.create_task(self._ask(place))
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self, place: Place) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                reader, writer = await asyncio.open_connection(*place)
                writer.write(ASKS)
                answered = await reader.read(1)
        except TimeoutError:
            self._hung.add(place)
            for caller in list(self._on.get(place, ())):
                caller.move()
        except OSError:  # nobody is there: whoever connects sees it at once
            self._hung.discard(place)
        else:
            if answered:
                self._hung.discard(place)
        finally:
            if writer is not None:
                writer.transport.abort()
