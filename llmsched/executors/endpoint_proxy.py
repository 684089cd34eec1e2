"""Keeps the proxy in front of the gateway (`gateway/proxy.py`) running, where Ray has a user of its own.

It is a process beside the controller, which it outlives: the next controller takes it on again, and no stream is cut.
This one starts it, and starts another when it is gone or hangs. The port that callers know stays theirs meanwhile: the
controller holds it too, so that nobody else on this machine can listen there and be shown tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from llmsched.errors import ClusterError
from llmsched.executors.port import Connected, Deliver, Disconnected, EndpointSeen, Observation
from llmsched.executors.ports import free_ports
from llmsched.gateway import proxy

log = logging.getLogger("llmsched.endpoint")
HOST = "127.0.0.1"
LOG = "endpoint-proxy.log"
COMMAND = (sys.executable, "-P", "-m", proxy.__name__)
STARTS_WITHIN_S = 30.0
ENDS_WITHIN_S = 5.0
LOOK_EVERY_S = 0.05
WATCH_EVERY_S = 2.0
HANGS_AFTER_S = 15.0  # without a touch of its note, several of which are due
PAUSE_S = (0.5, 30.0)  # before another start: at first, and at most


class Proxy(NamedTuple):
    """One that runs."""

    pid: int
    port: int


def running(home: Path) -> Proxy | None:
    """That of the controller of `home`, which need not run."""
    try:
        with (home / proxy.NOTE).open() as note:
            try:
                fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Proxy(**json.loads(note.read()))
    except (FileNotFoundError, ValueError, TypeError):
        pass  # none, or one that has only begun
    return None


def end(home: Path) -> None:
    """It is gone afterwards. Raises ClusterError."""
    found, deadline = running(home), time.monotonic() + ENDS_WITHIN_S
    if found is None:
        return
    _signal(found.pid, signal.SIGTERM)
    while (now := running(home)) is not None and now.pid == found.pid:
        if time.monotonic() > deadline + ENDS_WITHIN_S:
            raise ClusterError(f"the proxy of endpoints (pid {found.pid}) does not end.")
        if time.monotonic() > deadline:
            _signal(found.pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_S)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class EndpointProxy:
    """Of one home. `port` 0: any that is free. Raises ClusterError when somebody else listens there."""

    def __init__(self, home: Path, port: int = 0) -> None:
        self._home = home
        try:
            self._held = proxy.listening_socket(port or free_ports(1, HOST)[0], only_held=True)
        except OSError as error:
            raise ClusterError(
                f"port {port} on {HOST} cannot be used for endpoints: {error.strerror}.",
                code="port_in_use",
                hint="Choose another with --endpoint-port.",
            ) from None
        self.port = int(self._held.getsockname()[1])
        self._child: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._deliver: Deliver = lambda _: None
        self._own_trouble = self._gateway_trouble = ""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self, *, stop: bool) -> None:
        """Let it go on without us, or `stop` it."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if stop:
            await asyncio.to_thread(end, self._home)
        if self._child is not None:
            self._child.poll()
        self._held.close()

    def in_front_of(self, deliver: Deliver) -> Deliver:
        """What is told of the gateway's address is for the proxy alone: everybody else hears of the proxy's. What is
        told of trouble holds that of either."""
        self._deliver = deliver

        def told(observation: Observation) -> None:
            if isinstance(observation, EndpointSeen):
                self._gateway_trouble = observation.trouble
                observation = EndpointSeen(self._own_trouble or observation.trouble)
            if isinstance(observation, Disconnected):
                self._gateway_trouble = ""
            if isinstance(observation, Connected) and (gateway := observation.urls.get("endpoint")):
                self._lead_to(gateway)
                observation = replace(observation, urls={**observation.urls, "endpoint": self.url})
            deliver(observation)
            if isinstance(observation, Disconnected) and self._own_trouble:  # which outlives the bridge
                deliver(EndpointSeen(self._own_trouble))

        return told

    def _lead_to(self, gateway: str) -> None:
        host, _, port = gateway.rpartition("/")[2].rpartition(":")
        draft = self._home / f".{proxy.GATEWAY}"
        draft.write_text(json.dumps([host, int(port)]))
        draft.replace(self._home / proxy.GATEWAY)

    def _say(self, trouble: str) -> None:
        if trouble != self._own_trouble:
            self._own_trouble = trouble
            self._deliver(EndpointSeen(trouble or self._gateway_trouble))

    # --- one process after the other --------------------------------------------------------------------------------

    async def _keep(self) -> None:
        pause = PAUSE_S[0]
        while True:
            try:
                found = running(self._home) or await self._started()
                if found.port != self.port:
                    log.warning("the proxy of endpoints answers on port %d: it is started again", found.port)
                    await asyncio.to_thread(end, self._home)
                    continue
                log.info("endpoints answer at %s (pid %d)", self.url, found.pid)
                pause = PAUSE_S[0]
                self._say("")
                log.warning("the proxy of endpoints %s: it is started again", await self._trouble(found))
            except (ClusterError, OSError) as error:
                log.error("%s", error)
                pause = min(2 * pause, PAUSE_S[1])
                self._say("the proxy before the gateway does not start: requests to endpoints fail until it does")
            await asyncio.sleep(pause)

    async def _started(self) -> Proxy:
        """Raises ClusterError and OSError."""
        file = self._home / "logs" / LOG
        self._child = child = self._spawned(file)
        deadline = time.monotonic() + STARTS_WITHIN_S
        try:
            while (found := running(self._home)) is None or found.pid != child.pid:
                if child.poll() is not None:
                    words = file.read_text(errors="replace").strip().rpartition("\n")[2]
                    raise ClusterError(f"the proxy of endpoints did not start: {words or 'it said nothing'}.")
                if time.monotonic() > deadline:
                    raise ClusterError(f"the proxy of endpoints did not start within {STARTS_WITHIN_S:g} s.")
                await asyncio.sleep(LOOK_EVERY_S)
        except BaseException:
            found = running(self._home)
            if found is None or found.pid != child.pid:
                child.kill()  # nobody could find one that has not begun yet
            raise
        return found

    def _spawned(self, file: Path) -> subprocess.Popen[bytes]:
        """Not by asyncio, which would end it with us."""
        with file.open("wb") as said:
            return subprocess.Popen(
                [*COMMAND, str(self._home), str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    async def _trouble(self, found: Proxy) -> str:
        """What befell it, once something has."""
        with _watched(found.pid) as gone:
            beat, since = 0, time.monotonic()
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(gone.wait(), WATCH_EVERY_S)
                if gone.is_set():
                    code = self._child.poll() if self._child is not None and self._child.pid == found.pid else None
                    return "is gone" if code is None else f"ended with {code}"
                seen = (self._home / proxy.NOTE).stat().st_mtime_ns
                if seen != beat:
                    beat, since = seen, time.monotonic()
                elif time.monotonic() - since > HANGS_AFTER_S:
                    _signal(found.pid, signal.SIGKILL)
                    await gone.wait()
                    return "hung"


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[asyncio.Event]:
    """Set once that process is gone."""
    gone = asyncio.Event()
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        gone.set()
        yield gone
        return
    loop = asyncio.get_running_loop()

    def tell() -> None:
        loop.remove_reader(handle)
        gone.set()

    loop.add_reader(handle, tell)
    try:
        yield gone
    finally:
        loop.remove_reader(handle)
        os.close(handle)
