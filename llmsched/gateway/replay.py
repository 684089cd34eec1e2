"""What has been passed on of a request that has no answer yet, so that another gateway can be asked the same.

Of one connection of a caller. A request that is asked again may be worked on twice, and is answered once: that is
harmless where a model answers, and where HTTP says so of its method. Not repeated is what came beside another request,
what has begun to be answered, and what is too large to keep. Knows nothing of who sends and who answers.
"""

from __future__ import annotations

from typing import Any

import httptools

from llmsched.gateway.routes import is_of_model

KEPT_BYTES = 64 << 20  # of all connections together
SAFE = (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE")  # RFC 9110, 9.2.2: idempotent


class Room:
    """How many more bytes may be kept."""

    def __init__(self, size: int = KEPT_BYTES) -> None:
        self.left = size


class Replay:
    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: list[bytes] | None = None
        self._size = 0
        self._unanswered = 0  # requests
        self._is_known = True  # which of them have been answered
        self._answers: Any = httptools.HttpResponseParser(self)
        self._may_again = False
        self._is_begun = False  # an answer, that is not whole yet

    def begins(self, method: bytes, target: bytes) -> None:
        """A request does; `passes` has its bytes."""
        self._forget()
        self._unanswered += 1
        may_again = method in SAFE or is_of_model(target.partition(b"?")[0].decode("latin-1"))
        if self._unanswered == 1 and self._is_known and may_again:
            self._kept = []
        if method == b"HEAD":  # its answer has no body, whatever its head says
            self._is_known = False
        self._may_again = True

    def passes(self, data: bytes) -> None:
        if self._kept is not None and self._room.left >= len(data):
            self._kept.append(data)
            self._size += len(data)
            self._room.left -= len(data)
        else:
            self._forget()

    def answers(self, data: bytes) -> None:
        """So much of an answer has come, and has been passed on."""
        self._forget()
        if self._is_known:
            try:
                self._answers.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._is_known = False

    def on_message_begin(self) -> None:  # of an answer
        self._is_begun = True

    def on_message_complete(self) -> None:
        self._is_begun = False
        if self._answers.get_status_code() >= 200:
            self._unanswered -= 1

    def lose(self) -> None:
        """The connection goes on in another way: nothing of it can be repeated."""
        self._forget()
        self._is_known = False

    @property
    def is_idle(self) -> bool:
        return self._is_known and self._unanswered == 0

    @property
    def is_waiting(self) -> bool:
        """One request, for the first word of its answer."""
        return self._is_known and self._unanswered == 1 and not self._is_begun

    def again(self) -> list[bytes] | None:
        """The request that waits for its answer, for another gateway, once; None where it cannot be repeated."""
        if self._kept is None or not self._may_again:
            return None
        self._may_again = False
        return list(self._kept)

    def _forget(self) -> None:
        self._room.left += self._size
        self._kept, self._size = None, 0

    close = _forget
