"""One process: store, executor, controller and the HTTP server, on loopback. `llmsched up` starts it detached.

SIGTERM ends it in good order and leaves running work alone; `POST /api/v1/shutdown` can also take that work down. Knows
who is wired to whom, and decides nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from llmsched.api import app, auth, home, results, storage_claim
from llmsched.connections import Quiet, Waiting, connections_of, make_room
from llmsched.control import data_files, garbage, model_files, snapshot_maker
from llmsched.control.clock import RealClock
from llmsched.control.controller import Controller
from llmsched.control.vault import Vault
from llmsched.errors import ClusterError, LlmschedError, SpecError
from llmsched.executors import ray_user as users
from llmsched.executors.endpoint_proxy import EndpointProxy
from llmsched.executors.ports import free_ports
from llmsched.runtime.storage import StorageError
from llmsched.spec import http_models
from llmsched.store import keyfile
from llmsched.store.reading import Places
from llmsched.store.sqlite import SqliteStore
from llmsched.store.tables import ArchiveQuery

log = logging.getLogger("llmsched.api")
WEBSOCKET_MESSAGE_LIMIT = 1 << 20
BACKLOG = 2048  # as uvicorn's
GRACE_S = 2  # for open requests when the server stops; streams end then


async def serve(
    controller: Any,
    application: Any,
    listener: socket.socket,
    folder: Path,
    isolation: home.Isolation,
    *,
    user: users.RayUser | None = None,
    fresh: bool = False,
) -> None:
    """Run the controller behind `application` until it is told to stop, or fails (then its error is raised). `user` is
    whose the results are. `fresh`: before it answers anything, it cancels what had not ended."""
    server = web_server(application)
    stop = application.state.stop
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    control = asyncio.create_task(controller.run())
    told = asyncio.create_task(stop.wait())
    begun = asyncio.create_task(controller.started.wait())
    web = sweeping = None
    application.state.uploads.drafts = folder
    try:
        # Nothing is answered from a state that is not folded yet.
        await asyncio.wait({control, told, begun}, return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            _claim_storage(controller, folder, user)
            if fresh:
                await _cancel_all(controller)
            listener.listen(BACKLOG)  # before it is announced: the server's first step may come later
            web = asyncio.create_task(server.serve(sockets=[listener]))
            sweeping = asyncio.create_task(application.state.uploads.sweep_forever())
            home.record_isolation(folder, isolation)  # not before there is a store: it is proof of one
            home.announce(folder, url_of(listener))
            log.info("answers at %s", url_of(listener))
            await asyncio.wait({control, web, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        home.withdraw(folder)
        for waiter in (told, begun, sweeping):
            if waiter is not None:
                waiter.cancel()
        if not control.done():  # first, because that ends the streams of events
            await controller.stop(stop_everything=application.state.stop_everything)
        await application.state.dashboard.close()
        if web is not None:
            server.should_exit = True
            await web
        await control


def _claim_storage(controller: Any, folder: Path, user: users.RayUser | None) -> None:
    """Raises RequestError where another llmsched has it. One that is away is claimed at the next start."""
    key = keyfile.read(Places.of(home.store_file(folder)).key, "store_key")
    if key is None:
        return  # it has gone from under us: the next start says so
    is_new = not controller.state.workloads and not controller.archived(ArchiveQuery(1))
    try:
        storage_claim.claim(results.open_storage(controller.storage, user), storage_claim.identity(key), is_new=is_new)
    except (OSError, StorageError) as error:
        log.warning("the storage %s cannot be used now: %s", controller.storage, error)


async def _cancel_all(controller: Any) -> None:
    for name, found in list(controller.state.workloads.items()):
        if not found.outcome and not found.cancelled:
            await controller.cancel(name, by=home.user_name())


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def web_server(application: Any, grace_s: int = GRACE_S) -> Quiet:
    config = uvicorn.Config(
        application,
        http=connections_of(Waiting()),
        ws="websockets-sansio",
        ws_max_size=WEBSOCKET_MESSAGE_LIMIT,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=grace_s,
        server_header=False,
    )
    return Quiet(config)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket on loopback. Raises ClusterError when the port is taken, SpecError for any other host."""
    if host not in auth.LOOPBACK:
        raise SpecError(
            f"the API answers on loopback only, not on {host}.",
            code="host",
            hint="Reach it from elsewhere through an SSH tunnel or a proxy with TLS on this machine.",
        )
    # With the protocol named, asyncio turns Nagle's algorithm off; without it every answer would take 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ClusterError(
            f"port {port} on {host} cannot be used: {error.strerror}.",
            code="port_in_use",
            hint="Choose another with --port (the API) or --endpoint-port, or leave it out for a free one.",
        ) from None
    return listener


def _listen_again(host: str, port: int) -> socket.socket:
    """On the port of last time, or on a free one where somebody else has it meanwhile."""
    if port:
        try:
            return listen(host, port)
        except ClusterError as error:
            log.warning("%s", error.message)
    return listen(host, free_ports(1, host)[0])


def _proxy(folder: Path, asked: int, known: int) -> EndpointProxy:
    """On the port that was asked for, else on that of last time, or on a free one where somebody else has it."""
    try:
        return EndpointProxy(folder, asked or known)
    except ClusterError as error:
        if asked:
            raise
        log.warning("%s", error.message)
        return EndpointProxy(folder)


async def main(
    folder: Path,
    *,
    address: str | None = None,
    fake_nodes: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    endpoint_port: int = 0,
    storage: str | None = None,
    ray_user: str | None = None,
    single_user: str = "",
    fresh: bool = False,
    env: Sequence[str] = (),
) -> None:
    """Until it is told to stop. `address` is the GCS address of a Ray cluster; `fake_nodes` ("2x4:A100") needs none.

    Ports that are 0 are those of last time. `fresh` cancels what had not ended.

    `ray_user` names whom that Ray runs as; without it it is this user, and `single_user` says why. `env` names
    variables that the bridge gets beside the usual ones. Raises RequestError when another controller holds the home or
    `ray_user` cannot be had, ClusterError and StoreError as their parts do.
    """
    home.prepare(folder)
    home.hold(folder)
    user = users.choose(ray_user, make=False).user if ray_user and address else None
    model_files.read_as(partial(users.acting_as, user))
    if user is not None:
        data_files.look_with(users.command(user, module="llmsched.data.look"))
    make_room()
    garbage.spare_the_loop()
    known = home.ports(folder)
    proxy = _proxy(folder, endpoint_port, known.endpoint) if address is not None else None
    endpoints = proxy.port if proxy is not None else endpoint_port or known.endpoint
    wanted = home.Ports(port or known.api, endpoints)
    with contextlib.closing(listen(host, port) if port else _listen_again(host, known.api)) as listener:
        home.remember_ports(folder, wanted if wanted.api else wanted._replace(api=listener.getsockname()[1]))
        place = storage or (str(folder / "storage") if address is None else home.default_storage(folder))
        if address is not None:
            home.refuse_in_home(folder, place)
        store = SqliteStore(home.store_file(folder), proofs=home.proofs_of_use(folder))
        executor = _executor(folder, address, fake_nodes, place, user, env, proxy)
        isolation = _isolation(address, user, single_user)
        tokens = auth.Tokens(folder, at_endpoints=isolation.mode == "single-user")  # all work could read them
        clock = RealClock()
        vault = Vault(store, home.secret_key_file(folder), clock.now)
        make_snapshot = snapshot_maker.in_process(store.path)
        controller = Controller(
            store, executor, clock, storage=place, keys=tokens.keys, vault=vault, make_snapshot=make_snapshot
        )
        application = app.build(controller, tokens, isolation=isolation, ray_user=user, home=folder)
        noted = home.Isolation(**isolation.model_dump(), storage=place)
        await serve(controller, application, listener, folder, noted, user=user, fresh=fresh)


def _isolation(address: str | None, user: users.RayUser | None, why: str) -> http_models.IsolationView:
    if address is None:
        return http_models.IsolationView()
    if user is not None:
        return http_models.IsolationView(mode="two-users", ray_user=user.name)
    return http_models.IsolationView(mode="single-user", why=why or "Ray runs as the controller's own user")


def _executor(
    folder: Path,
    address: str | None,
    fake_nodes: str | None,
    storage: str,
    user: users.RayUser | None,
    env: Sequence[str],
    proxy: EndpointProxy | None,
) -> Any:
    if fake_nodes is not None:
        from llmsched.executors.fake import FakeExecutor
        from llmsched.executors.local_ray import parse_nodes

        return FakeExecutor(parse_nodes(fake_nodes))
    from llmsched.executors.bridge_client import BridgeClient

    if address is None:
        raise SpecError("there is no Ray cluster to work on.", hint="Give --address, or start with llmsched up.")
    return BridgeClient(address, storage=storage, home=folder, user=user, pass_on=env, proxy=proxy)


def command(arguments: list[str] | None = None) -> int:
    """What `llmsched up` runs, and what a service manager may run. Says on stderr why it ended."""
    parser = argparse.ArgumentParser(prog="python -m llmsched.api")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--address")
    parser.add_argument("--fake-nodes")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--endpoint-port", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="cancel what had not ended")
    parser.add_argument("--storage")
    parser.add_argument("--ray-user", help="whom that Ray runs as, where this is root")
    parser.add_argument("--single-user", default="", help="why Ray has no user of its own")
    parser.add_argument(
        "--env", action="append", default=[], help="a variable that the bridge gets beside the usual ones"
    )
    given = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(main(given.pop("home"), **given))
    except LlmschedError as error:
        print(f"llmsched: {error}", file=sys.stderr)
        return error.exit_code
    return 0
