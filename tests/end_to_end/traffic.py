"""Clients that ask an app of a test cluster, and stream from it, without a pause, while a part of it is killed."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from ray_home import Home
from waiting import PATIENCE_S

from llmsched.errors import LlmschedError

ASKING, STREAMING = 2, 4
CLIENTS = ASKING + STREAMING
CHUNKS, CHUNK_S = 20, 0.1
TROUBLE = LlmschedError, httpx.HTTPError, OSError, KeyError


@dataclass
class Traffic:
    """Every failure is counted once. The app answers {} at once, and {"stream", "chunks", "chunk_s"} with so many
    objects that hold a "number". `endpoint`: where it is now, asked for again when a connection fails."""

    home: Home
    app: str
    endpoint: Callable[[], str]
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    _url: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._url = self.endpoint()
        works = [self._ask] * ASKING + [self._stream] * STREAMING
        self._threads = [threading.Thread(target=self._forever, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _forever(self, work: Callable[[httpx.Client], str]) -> None:
        with httpx.Client(headers=self.home.bearer(), timeout=PATIENCE_S) as http:
            while not self._stop.is_set():
                try:
                    trouble = work(http)
                except httpx.HTTPError as error:
                    trouble = type(error).__name__
                    with contextlib.suppress(*TROUBLE):
                        self._url = self.endpoint()  # a new cluster's gateway has another port
                self.asked += 1
                if trouble:
                    self.failures.append(trouble)
                self._stop.wait(0.1)

    def _ask(self, http: httpx.Client) -> str:
        answer = http.post(f"{self._url}/v1/apps/{self.app}", json={})
        return "" if answer.status_code == 200 else f"{answer.status_code}"

    def _stream(self, http: httpx.Client) -> str:
        body = {"stream": True, "chunks": CHUNKS, "chunk_s": CHUNK_S}
        with http.stream("POST", f"{self._url}/v1/apps/{self.app}", json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code}"
            lines = [line for line in answer.iter_lines() if line]
        if sum('"number"' in line for line in lines) == CHUNKS:
            return ""
        return f"stream: {json.loads(lines[-1][6:])['error']['code']}" if lines and '"error"' in lines[-1] else "silent"
