"""What the work of an attempt asks for, until it is answered: the supervisor's part of `ask.py`.

The bridge reads it with everything else that the supervisor says, and brings the answers. Nothing is lost with a bridge
or a controller: what is not answered is told again. Standard library only, in any thread.
"""

from __future__ import annotations

import threading

ASKS_AT_ONCE = 8  # of one attempt, without an answer yet
BYTES_AT_MOST = 1 << 20
ANSWERS_KEPT = 64  # the newest: whoever did not hear one asks for it again


class AskDesk:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, str] = {}
        self._answers: dict[str, str] = {}

    def ask(self, id: str, body: str) -> str | None:
        """The answer to what is asked as `id`, once there is one. The same id again asks nothing anew. Raises
        ValueError for more than is taken."""
        with self._lock:
            if id in self._answers:
                return self._answers[id]
            if id not in self._waiting:
                if len(self._waiting) >= ASKS_AT_ONCE:
                    raise ValueError(f"{ASKS_AT_ONCE} questions of this attempt wait for an answer already")
                if len(body) > BYTES_AT_MOST:
                    raise ValueError(f"a question has at most {BYTES_AT_MOST} characters, this one {len(body)}")
                self._waiting[id] = body
            return None

    def answered(self, id: str, body: str) -> None:
        with self._lock:
            if self._waiting.pop(id, None) is None:
                return
            self._answers[id] = body
            for old in list(self._answers)[:-ANSWERS_KEPT]:
                del self._answers[old]

    def waiting(self) -> list[tuple[str, str]]:
        """(id, body) of what has no answer yet, the oldest first."""
        with self._lock:
            return list(self._waiting.items())
