"""A member of a replica's gang, on whatever node: it has what its deployment was given, and the deployment's process.

The process has the workdir, packages, variables, GPUs and memory bound of the member, and a log of its own beside the
replica's. The replica, which makes the members (`serve_members.py`), reaches it by a line that needs a key. Knows no
Ray. Start at `Member.open`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from llmsched import sanitize
from llmsched.runtime import containment, environment, exceptions, nested, packages, redaction
from llmsched.runtime.serve_door import Door
from llmsched.runtime.serve_process import Process
from llmsched.runtime.storage import LocalStorage, Storage

REACHED_WITHIN_S = 60.0  # the replica asks as soon as it knows the address


class Opened(NamedTuple):
    """Where its process is to be reached. `refused`: why it cannot be made; `is_input`: trying again is no use."""

    address: tuple[str, int] = ("", 0)
    refused: str = ""
    is_input: bool = False


class Member:
    """`order` is the replica's LaunchOrder as JSON, `rank` its own place in it. `host`: the address of this machine at
    which the replica reaches it. `around`: variables of this node, beside those of this process."""

    def __init__(self, order: str, rank: int, key: bytes, host: str, around: dict[str, str] | None = None) -> None:
        self._order: dict[str, Any] = json.loads(order)
        redaction.hide(self._order)
        self._rank, self._key, self._host, self._around = rank, key, host, around or {}
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._door: Door | None = None
        self._guard: containment.Guard | None = None
        self._over_memory = ""
        self._has_begun = threading.Event()  # or never will
        self._around_commands: tuple[str, dict[str, str]] = ("", {})
        log = f"{self._order['gang']}/{self._order['attempt']}/logs/{rank}.log"
        self._log = environment.LogFile(self._order["storage"], log)

    def open(self) -> Opened:
        """Lay out what the process needs, and wait for the replica: the process begins once it has come."""
        try:
            self._guard = containment.guard_of(self._order, self._rank, is_here=False, on_memory=self._on_memory)
            environment.check_version(self._order)
            envs, path, folder = self._surroundings()
        except (environment.UserError, packages.Unreachable) as error:
            self._say(f"[llmsched] {error}\n")
            return Opened(refused=str(error), is_input=isinstance(error, environment.UserError))
        except Exception as error:
            exceptions.show(error)
            return Opened(refused=exceptions.words(error))
        self._around_commands = str(folder or Path.cwd()), envs
        self._door = Door(self._host, self._key)
        threading.Thread(
            target=self._begin, args=(self._door, envs, path, folder), daemon=True, name="serve member"
        ).start()
        return Opened(self._door.address)

    def surroundings(self) -> tuple[str, dict[str, str]]:
        """Where its process stands and its variables, for commands of people beside it."""
        return self._around_commands

    def how_it_ended(self, within_s: float = 0.0) -> str:
        """As of its process, in words that go on the deployment's name. "" while it is there."""
        self._has_begun.wait(within_s)
        how = self._process.how_it_ended(within_s) if self._process is not None else ""
        return self._over_memory or how

    def close(self) -> None:
        """The line is cut. Returns when the process has ended, and all that it has left running."""
        if self._door is not None:
            self._door.close()
            self._has_begun.wait(REACHED_WITHIN_S)
        if self._process is not None:
            self._process.close()
        if self._guard is not None:
            ended, left = self._guard.close()
            if told := [*ended, *left]:
                self._say(f"[llmsched] ended what it left running: {'; '.join(told)}\n")
        self._log.close()

    def _begin(self, door: Door, envs: dict[str, str], path: list[str], folder: Path | None) -> None:
        try:
            line: socket.socket = door.let_in(REACHED_WITHIN_S)
            self._process = Process(line, envs, self._say, path, folder)
        except Exception as error:
            self._say(f"[llmsched] its process was not made: {sanitize.first_line(error)}\n")
        finally:
            self._has_begun.set()

    def _surroundings(self) -> tuple[dict[str, str], list[str], Path | None]:
        """(variables, where to import from, folder) of its process."""
        order, member = self._order, self._order["members"][self._rank]
        threads = max(1, min(int(member.get("cpus") or 1), environment.cpu_share(1)))
        if (extra := packages.provide(order, None, self._say)) is not None:
            extra.enter()
            nested.offer(extra)
        envs = {**os.environ, **environment.thread_envs(threads), **self._around, **order["envs"]}
        store = Storage.at(order["storage"])
        if isinstance(store, LocalStorage):
            envs.setdefault("LLMSCHED_CACHE", str(store.root / "cache"))
        path, folder = list(sys.path), None
        if order.get("workdir"):
            folder = environment.unpack(order["workdir"], nested.place_for_code())
            path.insert(0, str(folder))
        return {**envs, "PYTHONUNBUFFERED": "1"}, path, folder

    def _on_memory(self, word: containment.OverMemory) -> None:
        self._say(f"[llmsched] {word}\n")
        if word.is_over:
            self._over_memory = str(word)

    def _say(self, text: str) -> None:
        text = sanitize.unicode(redaction.clean(text))
        with self._lock, self._log.path.open("a", encoding="utf-8", errors="replace") as log:
            log.write(text)
