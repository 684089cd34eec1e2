"""Keeps two proxies in front of the gateway (`gateway/proxy.py`) running.

They are processes beside the controller, which they outlive: the next controller takes them on again, and no stream is
cut. This one starts them, and starts another when one is gone or hangs. They share the port that callers know, so that
it answers meanwhile. The controller holds it too, so that nobody else on this machine can listen there and be shown
tokens.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from llmsched.errors import ClusterError
from llmsched.executors.port import Connected, Deliver, Disconnected, EndpointSeen, Observation
from llmsched.executors.ports import free_ports
from llmsched.gateway import proxy

log = logging.getLogger("llmsched.endpoint")
HOST = "127.0.0.1"
COMMAND = (sys.executable, "-P", "-m", proxy.__name__)
STARTS_WITHIN_S = 30.0
ENDS_WITHIN_S = 5.0
LOOK_EVERY_S = 0.05
WATCH_EVERY_S = 2.0
HANGS_AFTER_S = 6.0  # without a touch of its note, several of which are due
PAUSE_S = (0.5, 30.0)  # before another start: at first, and at most


class Proxy(NamedTuple):
    """One that runs."""

    pid: int
    port: int


def running(home: Path, note: str = proxy.NOTES[0]) -> Proxy | None:
    """That of the controller of `home`, which need not run, by its note."""
    try:
        with (home / note).open() as noted:
            try:
                fcntl.flock(noted, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Proxy(**json.loads(noted.read()))
    except (FileNotFoundError, ValueError, TypeError):
        pass  # none, or one that has only begun
    return None


def end(home: Path) -> None:
    """All are gone afterwards. Raises ClusterError."""
    for note in proxy.NOTES:
        _end(home, note)


def _end(home: Path, note: str) -> None:
    found, deadline = running(home, note), time.monotonic() + ENDS_WITHIN_S
    if found is None:
        return
    _signal(found.pid, signal.SIGTERM)
    while (now := running(home, note)) is not None and now.pid == found.pid:
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
        self._keepers = [_Keeper(home, self.port, note, self._see) for note in proxy.NOTES]
        self._keeping: list[asyncio.Task[None]] = []
        self._deliver: Deliver = lambda _: None
        self._own_trouble = self._gateway_trouble = ""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        self._keeping = [asyncio.create_task(keeper.keep()) for keeper in self._keepers]

    async def close(self, *, stop: bool) -> None:
        """Let them go on without us, or `stop` them."""
        for keeping in self._keeping:
            keeping.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        if stop:
            await asyncio.to_thread(end, self._home)
        for keeper in self._keepers:
            keeper.bury()
        self._held.close()

    def in_front_of(self, deliver: Deliver) -> Deliver:
        """What is told of the gateway's address is for the proxy alone: everybody else hears of the proxy's. What is
        told of trouble holds that of either."""
        self._deliver = deliver

        def told(observation: Observation) -> None:
            if isinstance(observation, EndpointSeen):
                self._gateway_trouble = observation.trouble
                if observation.places:
                    self._lead_to(observation.places)
                observation = EndpointSeen(self._own_trouble or observation.trouble)
            if isinstance(observation, Disconnected):
                self._gateway_trouble = ""
            if isinstance(observation, Connected) and (gateway := observation.urls.get("endpoint")):
                host, _, port = gateway.rpartition("/")[2].rpartition(":")
                self._lead_to([(host, int(port))])
                observation = replace(observation, urls={**observation.urls, "endpoint": self.url})
            deliver(observation)
            if isinstance(observation, Disconnected) and self._own_trouble:  # which outlives the bridge
                deliver(EndpointSeen(self._own_trouble))

        return told

    def _lead_to(self, places: Sequence[tuple[str, int]]) -> None:
        draft = self._home / f".{proxy.GATEWAY}"
        draft.write_text(json.dumps(places))
        draft.replace(self._home / proxy.GATEWAY)

    def _see(self) -> None:
        """One of them starts, or does not."""
        trouble = ""
        if all(keeper.trouble for keeper in self._keepers):
            trouble = "the proxy before the gateway does not start: requests to endpoints fail until it does"
        if trouble != self._own_trouble:
            self._own_trouble = trouble
            self._deliver(EndpointSeen(trouble or self._gateway_trouble))


class _Keeper:
    """Of one process after the other, with one note. `see` is called when its `trouble` changes: why there is none."""

    def __init__(self, home: Path, port: int, note: str, see: Callable[[], None]) -> None:
        self._home, self._port, self._note, self._see = home, port, note, see
        self._child: subprocess.Popen[bytes] | None = None
        self.trouble = ""

    def bury(self) -> None:
        if self._child is not None:
            self._child.poll()

    def _is(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._see()

    async def keep(self) -> None:
        pause = PAUSE_S[0]
        while True:
            try:
                found = running(self._home, self._note) or await self._started()
                if found.port != self._port:
                    log.warning("the proxy of endpoints answers on port %d: it is started again", found.port)
                    await asyncio.to_thread(_end, self._home, self._note)
                    continue
                log.info("endpoints answer at port %d (pid %d)", self._port, found.pid)
                pause = PAUSE_S[0]
                self._is("")
                log.warning("the proxy of endpoints %s: it is started again", await self._trouble(found))
            except (ClusterError, OSError) as error:
                log.error("%s", error)
                pause = min(2 * pause, PAUSE_S[1])
                self._is(str(error))
            await asyncio.sleep(pause)

    async def _started(self) -> Proxy:
        """Raises ClusterError and OSError."""
        file = self._home / "logs" / self._note.replace(".json", ".log")
        self._child = child = self._spawned(file)
        deadline = time.monotonic() + STARTS_WITHIN_S
        try:
            while (found := running(self._home, self._note)) is None or found.pid != child.pid:
                if child.poll() is not None:
                    words = file.read_text(errors="replace").strip().rpartition("\n")[2]
                    raise ClusterError(f"the proxy of endpoints did not start: {words or 'it said nothing'}.")
                if time.monotonic() > deadline:
                    raise ClusterError(f"the proxy of endpoints did not start within {STARTS_WITHIN_S:g} s.")
                await asyncio.sleep(LOOK_EVERY_S)
        except BaseException:
            found = running(self._home, self._note)
            if found is None or found.pid != child.pid:
                child.kill()  # nobody could find one that has not begun yet
            raise
        return found

    def _spawned(self, file: Path) -> subprocess.Popen[bytes]:
        """Not by asyncio, which would end it with us."""
        with file.open("wb") as said:
            return subprocess.Popen(
                [*COMMAND, str(self._home), str(self._port), self._note],
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
                seen = (self._home / self._note).stat().st_mtime_ns
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
