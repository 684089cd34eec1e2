"""The controller's end of the pipe to the bridge: a child process that alone may talk to Ray.

The child may die, hang or be killed at any time: what runs in Ray does not notice. Here it is pinged, killed when it
does not answer, and started again after a pause; each death is said as Disconnected, so that control adopts what lives
once the next one has connected. Bodies of orders may hold secrets and are never logged. Decides nothing.

The child unpickles what workloads answer, so it is trusted with no more than they are: it runs as the user that Ray
runs as, with the same variables and no word of the home. What it must know comes through the pipe, which other
processes of that user can neither read nor write (`enter.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from llmsched.errors import ClusterError
from llmsched.executors import local_ray, ray_environment, ray_user, wire
from llmsched.executors.endpoint_proxy import EndpointProxy
from llmsched.executors.port import (
    AdapterOrder,
    AskAnswer,
    CommandAnswer,
    CommandEnded,
    CommandInput,
    CommandOrder,
    CommandSaid,
    CommandTook,
    Connected,
    DashboardOrder,
    Deliver,
    Disconnected,
    Hear,
    LaunchOrder,
    RouteTable,
    StopOrder,
)
from llmsched.executors.ray_user import RayUser

log = logging.getLogger("llmsched.bridge")
# -P, and run in an empty folder: where it stands goes into the sys.path of every worker, and a checkout at ~/llmsched,
# seen from ~, would be taken for the package.
MODULE = "llmsched.executors.bridge.main"
COMMAND = (sys.executable, "-P", "-m", MODULE)
PAUSE_S = (0.5, 30.0)  # before a new start: at first, and at most
PROBE_EVERY_S, PROBE_WITHIN_S = 0.5, 1.0  # whether Ray listens again
STEADY_S = 60.0  # who lived this long is started again without a longer pause
CONNECT_WITHIN_S = 120.0  # twice what the child gives Ray itself
CLOSE_WITHIN_S = 10.0
TAKE_DOWN_WITHIN_S = 120.0
LOG_AT_MOST_BYTES = 16 * 1024 * 1024


class BridgeClient:
    """`address` is the GCS address of the cluster; `home` holds logs/. The child runs as `user` (None: as we do), with
    the variables of this process that `pass_on` names beside the usual ones. Endpoints answer at the
    gateway's own port, or behind `proxy`."""

    def __init__(
        self,
        address: str,
        *,
        storage: str,
        home: Path,
        proxy: EndpointProxy | None = None,
        user: RayUser | None = None,
        pass_on: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
        ping_every_s: float = wire.PING_EVERY_S,
        pong_within_s: float = wire.PONG_WITHIN_S,
        pong_of_busy_within_s: float = wire.PONG_OF_BUSY_WITHIN_S,
        connect_within_s: float = CONNECT_WITHIN_S,
        pause_s: tuple[float, float] = PAUSE_S,
    ) -> None:
        self._address = address
        self._storage = storage
        self._home = home
        self._proxy = proxy
        self._user = user
        self._pass_on = pass_on
        self._command = ray_user.command(user, module=MODULE) if user else command
        self._ping_every_s = ping_every_s
        self._pong_within_s = pong_within_s
        self._pong_of_busy_within_s = pong_of_busy_within_s
        self._connect_within_s = connect_within_s
        self._pause_s = pause_s
        self._epoch = 0
        self._deliver: Deliver = lambda _: None
        self._keeper: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._is_connected = False
        self._is_insecure = False
        self._pongs = 0
        self._ponged = asyncio.Event()
        self._closed = asyncio.Event()
        self._closing = False
        self._hearers: dict[str, Hear] = {}  # of the commands that run

    @property
    def pid(self) -> int | None:
        """Of the child that lives now."""
        return None if self._process is None else self._process.pid

    # --- the port ---------------------------------------------------------------------------------------------------

    async def start(self, deliver: Deliver, epoch: int) -> None:
        self._deliver = deliver
        if self._proxy is not None:
            self._deliver = self._proxy.in_front_of(deliver)
            self._proxy.start()
        self._epoch = epoch
        self._keeper = asyncio.create_task(self._keep_alive())

    async def adopt(self, live: Sequence[tuple[LaunchOrder, bool]]) -> None:
        for some in wire.adopts_of(live):
            await self._order("adopt", some)
            await asyncio.sleep(0)  # thousands may live

    async def launch(self, order: LaunchOrder) -> None:
        await self._order("launch", order)

    async def resize(self, order: LaunchOrder) -> None:
        await self._order("resize", order)

    async def stop(self, order: StopOrder) -> None:
        await self._order("stop", order)

    async def load_adapter(self, order: AdapterOrder) -> None:
        await self._order("load_adapter", order)

    async def answer(self, answer: AskAnswer) -> None:
        await self._order("answer", answer)

    async def execute(self, order: CommandOrder, hear: Hear) -> None:
        await self._ask("execute", order, hear)

    async def ask_dashboard(self, order: DashboardOrder, hear: Hear) -> None:
        await self._ask("ask_dashboard", order, hear)

    async def _ask(self, op: str, order: CommandOrder | DashboardOrder, hear: Hear) -> None:
        self._hearers[order.id] = hear
        try:
            await self._order(op, order)
        except ClusterError:
            del self._hearers[order.id]
            raise

    async def tell_command(self, told: CommandInput) -> None:
        await self._order("tell_command", told)

    async def end_command(self, order: CommandOrder | DashboardOrder) -> None:
        if order.id in self._hearers:
            with suppress(ClusterError):
                await self._order("end_command" if isinstance(order, CommandOrder) else "end_ask", order)

    async def route(self, table: RouteTable) -> None:
        await self._order("route", table)

    async def request_capacity(self, bundles: Sequence[tuple[dict[str, float], dict[str, str], int]]) -> None:
        await self._order("request_capacity", wire.capacity_of(bundles))

    async def close(self, *, stop_everything: bool = False) -> None:
        if self._keeper is None:
            return
        self._closing = True
        process = self._process
        if process is not None and self._is_connected:
            with suppress(ClusterError, TimeoutError):
                await self._write("close", wire.Close(stop_everything))
                seconds = TAKE_DOWN_WITHIN_S if stop_everything else CLOSE_WITHIN_S
                await asyncio.wait_for(self._closed.wait(), seconds)
        self._keeper.cancel()
        with suppress(asyncio.CancelledError):
            await self._keeper
        self._keeper = None
        if self._proxy is not None:
            await self._proxy.close(stop=stop_everything)
        local_ray.clear(self._home)

    # --- one child after the other ----------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        pause = self._pause_s[0]
        while not self._closing:
            began = time.monotonic()
            said = await self._live_once()
            if self._closing:
                return
            log.warning("%s", said)
            self._deliver(Disconnected(said, self._is_insecure))
            if time.monotonic() - began >= STEADY_S:
                pause = self._pause_s[0]
            await self._rest(pause)
            pause = min(2 * pause, self._pause_s[1])

    async def _rest(self, seconds: float) -> None:
        """Before another start: so long, but no longer than until a Ray that was gone listens again."""
        ends_at, refused = time.monotonic() + seconds, await self._is_refused()
        while (left := ends_at - time.monotonic()) > 0:
            await asyncio.sleep(min(left, PROBE_EVERY_S))
            before, refused = refused, await self._is_refused()
            if before and not refused:
                return

    async def _is_refused(self) -> bool:
        """Whether nobody listens at the address of Ray. What does not answer at all is not known to be so."""
        host, _, port = self._address.rpartition(":")
        try:
            async with asyncio.timeout(PROBE_WITHIN_S):
                _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return True
        except (OSError, ValueError):  # TimeoutError is one
            return False
        writer.close()
        return False

    async def _live_once(self) -> str:
        """From the start of a child to its end; why it ended."""
        log_file = self._home / "logs" / "bridge.log"
        folder = local_ray.prepare(self._home, self._user)
        with _opened(log_file) as errors:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    limit=wire.MAX_LINE_BYTES,
                    env=self._environment(),
                    cwd=folder / "empty",
                    start_new_session=True,  # Ctrl-C is for the controller, which then closes the child in good order
                )
            except OSError as error:
                return f"the bridge could not be started: {error.strerror}"
        self._process, self._pongs = process, 0
        pinger = asyncio.create_task(self._ping(process))
        try:
            settings = wire.Settings(
                address=self._address,
                epoch=self._epoch,
                storage=self._storage,
            )
            await self._write("start", settings)
            said = await self._listen(process)
        except ClusterError as error:
            said = error.message
        finally:
            self._is_connected = False
            self._process = None
            for command in list(self._hearers):
                self._hear(CommandEnded(command, None, "the connection to the cluster was lost"))
            pinger.cancel()
            code = await _end(process)
        if pinger.done() and not pinger.cancelled() and pinger.exception() is None:
            said = "the bridge did not answer in time and was killed"
        return said or f"the bridge ended ({_ending(code)}); see {log_file}"

    async def _listen(self, process: asyncio.subprocess.Process) -> str:
        """Deliver what the child says until it says nothing more; its last word about Ray, if it had one."""
        assert process.stdout is not None
        last = ""
        while True:
            try:
                line = await process.stdout.readline()
            except (ValueError, ConnectionError):
                raise ClusterError(f"the bridge sent a line over {wire.MAX_LINE_BYTES} bytes") from None
            if not line:
                return last
            try:
                answer = wire.decode_answer(line)
            except ClusterError as error:  # one line; those after it count
                log.error("%s", error)
                continue
            match answer:
                case wire.Hello():
                    if answer.protocol != wire.PROTOCOL:
                        raise ClusterError(
                            f"the bridge speaks protocol {answer.protocol}, this controller {wire.PROTOCOL}: "
                            "they are of different versions"
                        )
                case wire.Pong():
                    self._pongs = answer.n
                    self._ponged.set()
                case wire.Closed():
                    self._closed.set()
                case CommandSaid() | CommandTook() | CommandEnded():
                    self._hear(answer)
                case Disconnected():
                    self._is_connected, self._is_insecure = False, answer.is_insecure
                    last = answer.message
                    self._deliver(answer)
                case _:
                    if isinstance(answer, Connected):
                        self._is_connected, self._is_insecure = True, False
                        last = ""
                    self._deliver(answer)

    def _hear(self, answer: CommandAnswer) -> None:
        is_last = isinstance(answer, CommandEnded)
        hear = self._hearers.pop(answer.id, None) if is_last else self._hearers.get(answer.id)
        if hear is not None:
            hear(answer)

    async def _ping(self, process: asyncio.subprocess.Process) -> None:
        """Ends, having killed the child, when it no longer answers."""
        n, began = 0, time.monotonic()
        while True:
            await asyncio.sleep(self._ping_every_s)
            if not self._is_connected:
                if time.monotonic() - began > self._connect_within_s:
                    break
                continue
            n += 1
            self._ponged.clear()
            asked, worked_s = time.monotonic(), _worked_s(process.pid)
            pong = asyncio.create_task(self._pong(n))
            try:
                while not pong.done() and time.monotonic() - asked < self._pong_of_busy_within_s:
                    await asyncio.wait({pong}, timeout=self._pong_within_s)
                    if not pong.done() and not _is_busy(process.pid, worked_s):
                        break
                    worked_s = _worked_s(process.pid)
                if not pong.done():
                    break
                await pong
            except ClusterError:
                await process.wait()  # the pipe is broken: its end is said elsewhere
            finally:
                pong.cancel()
        log.warning("the bridge (pid %d) does not answer", process.pid)
        with suppress(ProcessLookupError):
            process.kill()

    async def _pong(self, n: int) -> None:
        await self._write("ping", wire.Ping(n))
        while self._pongs < n:
            await self._ponged.wait()
            self._ponged.clear()

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _order(self, op: str, body: wire.Order) -> None:
        """Raises ClusterError: `disconnected` when nobody is there to hear it (a later adopt will say it again)."""
        if not self._is_connected:
            raise _disconnected()
        await self._write(op, body)

    async def _write(self, op: str, body: wire.Order) -> None:
        line = wire.encode_order(op, body)
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            raise _disconnected()
        try:
            process.stdin.write(line)
            await process.stdin.drain()
        except (ConnectionError, RuntimeError):
            raise _disconnected() from None

    def _environment(self) -> dict[str, str]:
        """Ray reads these when it is imported: they must be there before the child's first line."""
        mine = ray_environment.build(os.environ, self._user, self._pass_on).variables
        mine |= {"RAY_ADDRESS": self._address, "PYTHONUNBUFFERED": "1"}
        folder = local_ray.runtime_folder(self._home)
        mine["TMPDIR"] = str(folder / "tmp")
        if (folder / local_ray.TOKEN).exists():
            return mine | local_ray.environment(self._home)
        return mine | ray_environment.connection(os.environ)


def _disconnected() -> ClusterError:
    return ClusterError("the bridge is not connected", code="disconnected")


def _opened(log_file: Path) -> IO[bytes]:
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists() and log_file.stat().st_size > LOG_AT_MOST_BYTES:
        log_file.replace(log_file.with_suffix(".log.old"))
    return open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


async def _end(process: asyncio.subprocess.Process) -> int:
    """Its exit code; killed if closing its input does not end it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        return await asyncio.wait_for(process.wait(), 5.0)
    except (TimeoutError, asyncio.CancelledError):
        with suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def _worked_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _is_busy(pid: int, before_s: float) -> bool:
    """Whether it works, or would if it had a CPU or its disk answered: not stopped, and not asleep all the time."""
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return False
    if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE):
        return False
    return status in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP) or _worked_s(pid) > before_s


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
