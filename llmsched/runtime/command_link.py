"""From a command of a task to its worker: who it is, what it reports, whether it is asked to leave.

A train loop runs inside a process of ours; a command of a task is any program. The worker beside it answers on a socket
that the variable LLMSCHED_LINK names, so that the same `llmsched.runtime` works in both. Each question is a connection
of its own: a program may fork as it likes. Standard library only. Start reading at `Desk` (the worker's side) or
`fields_of_command` (the program's).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llmsched import sanitize
from llmsched.runtime import environment, redaction

NAME = "LLMSCHED_LINK"
_LINE_AT_MOST = 4 << 20  # a question of ask_desk's size, as JSON in JSON
_LOOK_EVERY_S = 0.5  # whether to close, where nothing wakes it
_PATIENCE_S = 10.0
_LONGEST_FOLDER = 60  # characters: the name of a socket ends at 107 bytes


class Answers(NamedTuple):
    """What a worker knows and passes on."""

    who: Callable[[], dict[str, Any]]
    report: Callable[[dict[str, Any]], object]
    checkpointed: Callable[[int, float | None], object]
    should_stop: Callable[[], bool]
    ask: Callable[[str, str], str | None]


class Desk:
    """Answers until `close`, in threads of its own. `path` is what LLMSCHED_LINK is to be."""

    def __init__(self, answers: Answers) -> None:
        root = Path(tempfile.gettempdir())
        short = root if len(str(root)) <= _LONGEST_FOLDER else Path("/tmp")
        self._folder = Path(tempfile.mkdtemp(prefix="llmsched-link-", dir=short))  # nobody else may pass it
        environment.keep(self._folder)  # swept when this process is killed
        self.path = str(self._folder / "link")
        self._server = _Server(self.path, _Connection)
        self._server.answers = answers
        threading.Thread(target=self._server.serve_forever, args=(_LOOK_EVERY_S,), daemon=True, name="link").start()

    def close(self) -> None:
        with suppress(OSError):  # wakes the server: the next task waits for this one's end
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        environment.drop(self._folder)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    answers: Answers


class _Connection(socketserver.StreamRequestHandler):
    timeout = _PATIENCE_S
    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            try:
                asked = sanitize.loads(self.rfile.readline(_LINE_AT_MOST))
                answer = _answer(self.server.answers, asked)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                answer = {"error": sanitize.first_line(error)}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def _answer(answers: Answers, asked: dict[str, Any]) -> Any:
    match asked["ask"]:
        case "who":
            return answers.who()
        case "stop":
            return answers.should_stop()
        case "report":
            answers.report(dict(asked["values"]))
        case "checkpointed":
            answers.checkpointed(int(asked["step"]), asked.get("fraction"))
        case "ask":
            return answers.ask(str(asked["id"]), str(asked["body"]))
        case other:
            raise ValueError(f"nobody answers {other!r}")
    return None


class CommandLink:
    """The program's end: a `Link`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._heard = False

    def report(self, values: dict[str, Any]) -> None:
        self._ask("report", values=values)

    def checkpointed(self, step: int, fraction: float | None) -> None:
        with suppress(OSError):
            self._ask("checkpointed", step=step, fraction=fraction)

    def should_stop(self) -> bool:
        """Whoever asks is not ended by the SIGTERM that says the same: it has its grace to save."""
        self._hold_sigterm()
        if not self._heard:
            try:
                self._heard = bool(self._ask("stop"))
            except OSError:
                self._heard = not Path(self._path).exists()  # its worker is gone, and with it the attempt
        return self._heard

    def ask(self, id: str, body: str) -> str | None:
        try:
            answer: str | None = self._ask("ask", id=id, body=body)
        except OSError:
            return None
        return answer

    def who(self) -> dict[str, Any]:
        """Raises OSError when nobody answers."""
        found: dict[str, Any] = self._ask("who")
        return found

    def _ask(self, what: str, **more: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(_PATIENCE_S)
            link.connect(self._path)
            link.sendall(json.dumps({"ask": what, **more}).encode() + b"\n")
            with link.makefile("rb") as said:
                line = said.readline()
        if not line:
            raise ConnectionError("the worker hung up")
        answer = json.loads(line)
        if isinstance(answer, dict) and set(answer) == {"error"}:
            raise ValueError(answer["error"])
        return answer

    def _hold_sigterm(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self._heard = True


def fields_of_command() -> dict[str, Any] | None:
    """The fields of a `Context` for a program that a task started, or None where none did, or nobody answers."""
    path = os.environ.get(NAME)
    if not path:
        return None
    link = CommandLink(path)
    try:
        who = link.who()
    except OSError:
        return None
    redaction.hide({"envs": os.environ, "spec": who["spec"]})
    place = {name: int(os.environ.get(name.upper()) or who[name]) for name in ("rank", "world_size")}
    folder = environment.scratch(f"command-{who['gang']}")
    return {**who, **place, "local_dir": folder, "supervisor": link}
