"""up and down: a controller of this home as a detached process, and a local Ray where none is given."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmsched.cli import show, terminal, unfinished

if TYPE_CHECKING:
    from llmsched.client import Client

CONNECT_WITHIN_S = 5.0
READY_WITHIN_S = 180.0
STOP_WITHIN_S = 60.0
LOOK_EVERY_S = 0.1
READ_EVERY_S = 0.02  # a file of our own


@click.command()
@click.option("--nodes", help='Pretend nodes of the local Ray, as "2x4:A100,1x8:H100"; they share the real CPUs.')
@click.option("--address", help="HOST:PORT of a running Ray (its GCS) to join, instead of starting one.")
@click.option("--fake-nodes", help="No Ray at all: work is only pretended, on nodes such as 2x4:A100.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of the API on loopback; default: that of last time.")
@click.option("--endpoint-port", type=click.IntRange(1, 65535), help="Of all endpoints; default: that of last time.")
@click.option("--storage", help="Folder or s3://bucket/prefix for results and logs; default: beside LLMSCHED_HOME.")
@click.option("--config", type=click.Path(), help="A cluster file (queues, quota, policies) to put in force.")
@click.option("--ray-user", help="Whom Ray runs as, and all work; default, as root: llmsched-ray, made if need be.")
@click.option(
    "--resume/--fresh", default=None, help="Whether work that had not ended goes on, or is cancelled; default: asks."
)
@click.option("--env", multiple=True, metavar="NAME", help="A variable of this shell that all work gets; repeatable.")
@show.json_option
def up(
    nodes: str | None,
    address: str | None,
    fake_nodes: str | None,
    port: int | None,
    endpoint_port: int | None,
    storage: str | None,
    config: str | None,
    ray_user: str | None,
    resume: bool | None,
    env: tuple[str, ...],
) -> None:
    """Start the controller here, and a local Ray where there is none.

    As root, Ray gets a user of its own, who can read nothing of the controller. Otherwise, and with --ray-user root,
    one user runs both: that is single-user mode, in which tokens are labels.

    Ports stay those of last time, unless somebody else has them. Work of before that had not ended goes on, if you say
    so: it asks on a terminal, and without one it goes on.
    """
    from llmsched.client.transport import default_home
    from llmsched.errors import SpecError

    if sum(given is not None for given in (nodes, address, fake_nodes)) > 1:
        raise SpecError("--nodes, --address and --fake-nodes exclude each other.", code="options")
    if storage is None and config is not None:
        storage = _storage_of(config)
    if fake_nodes is not None and (ray_user or env):
        raise SpecError("--fake-nodes has no Ray, so --ray-user and --env say nothing.", code="options")
    client = bring_up(
        default_home(),
        nodes=nodes,
        address=address,
        fake_nodes=fake_nodes,
        port=port or 0,
        endpoint_port=endpoint_port or 0,
        storage=storage,
        ray_user=ray_user,
        resume=resume,
        env=env,
    )
    with client:
        if config is not None:
            client.configure(config)
        health, listed = client.health(), client.nodes()
    show.answer(health, lambda: _print_up(client.url, health, listed))
    show.next_commands(
        [
            ("llmsched init train -o spec.yaml", "write a starter spec"),
            ("llmsched apply -f spec.yaml", "submit it"),
            ("llmsched status", "see what runs; llmsched down stops everything"),
        ]
    )


def bring_up(
    folder: Path,
    *,
    nodes: str | None = None,
    address: str | None = None,
    fake_nodes: str | None = None,
    port: int = 0,
    endpoint_port: int = 0,
    storage: str | None = None,
    ray_user: str | None = None,
    resume: bool | None = True,
    env: Sequence[str] = (),
) -> Client:
    """A client of the controller of home `folder`, which is started, with a local Ray, unless it runs.

    `port` and `endpoint_port` 0: those of last time, or free ones. `ray_user` is whom Ray is to run as, see
    `placement.choose`; `resume` whether work of before goes on (None: asks); `env` names variables that all work gets.
    Raises LlmschedError; what this call had started is stopped again then.
    """
    from llmsched.api import home
    from llmsched.executors import local_ray

    asks = False
    for text in (nodes, fake_nodes):
        if text is not None:
            local_ray.parse_nodes(text)
    home.prepare(folder)
    running = home.announced(folder)
    if running is not None:
        terminal.echo(f"A controller runs here already, at {running.url} (pid {running.pid}).", err=True)
        url = running.url
        _refuse_in_vain(folder, ray_user, env)
        _refuse_other_ports(folder, url, port, endpoint_port)
        if address is None and fake_nodes is None:
            _revive_ray(folder, nodes, url, env)
    else:
        ray = local_ray.read(folder)
        is_gone = address is None and (ray is None or not ray.is_alive())  # else it may run, and is taken on
        asks = is_gone and resume is None
        if asks and show.is_asked():
            resume, asks = unfinished.ask(folder), False
        more = ["--fresh"] if resume is False else []
        more += ["--endpoint-port", str(endpoint_port)] if endpoint_port else []
        url = _start(folder, nodes, address, fake_nodes, port, storage, ray_user, env, more)
    from llmsched.client import Client

    client = Client(url, home.own_token(folder))
    if asks:
        unfinished.tell(client)
    return client


def _refuse_in_vain(folder: Path, ray_user: str | None, env: Sequence[str]) -> None:
    """What would have no effect beside a controller and a Ray that run. Raises RequestError."""
    from llmsched.api import home
    from llmsched.errors import RequestError
    from llmsched.executors import local_ray
    from llmsched.executors.ray_user import own

    known, ray = home.isolation(folder), local_ray.read(folder)
    now = (known.ray_user if known else "") or own()
    hint = "llmsched down, then up again."
    if ray_user is not None and ray_user != now:
        raise RequestError(f"Ray runs as {now} here, and not as {ray_user}.", code="ray_user", hint=hint)
    if env and (ray is None or ray.is_alive()):
        raise RequestError(f"Ray runs already, and cannot be given {', '.join(env)}.", code="ray_user", hint=hint)


def _refuse_other_ports(folder: Path, url: str, port: int, endpoint_port: int) -> None:
    """Raises RequestError for a port that is another than that of the controller that runs."""
    from llmsched.api import home
    from llmsched.errors import RequestError

    for option, asked, now in (
        ("--port", port, int(url.rpartition(":")[2])),
        ("--endpoint-port", endpoint_port, home.ports(folder).endpoint),
    ):
        if asked and asked != now:
            raise RequestError(
                f"{option} {asked}: it answers on {now} here.", code="port", hint="llmsched down, then up again."
            )


def _print_up(url: str, health: Any, listed: Any) -> None:
    gpus = sum(node.total.gpus for node in listed.nodes)
    terminal.echo(f"controller  {url}")
    terminal.echo(f"web view    {url}/  (llmsched web prints the way in)")
    for name, where in sorted(health.urls.items()):
        terminal.echo(f"{name:<11} {where}{f'/v1  ({show.reach(where)})' if name == 'endpoint' else ''}")
    terminal.echo(f"cluster     {len(listed.nodes)} nodes, {gpus:g} GPUs")
    if health.isolation.mode == "two-users":
        terminal.echo(f"work        runs as {health.isolation.ray_user}, who can read nothing of the controller's")
    elif health.isolation.mode == "single-user":
        terminal.echo(f"work        single-user mode, tokens are labels: {health.isolation.why}")


def _storage_of(config: str) -> str | None:
    from llmsched.client.given import read_file
    from llmsched.spec import cluster

    return cluster.load(read_file(Path(config)), config).storage or None


def _start(
    folder: Path,
    nodes: str | None,
    address: str | None,
    fake_nodes: str | None,
    port: int,
    storage: str | None,
    ray_user: str | None,
    env: Sequence[str],
    more: Sequence[str],
) -> str:
    """The url of a controller that is started, with a Ray unless there is one. `more` are options of its own."""
    from llmsched.cli import placement
    from llmsched.executors import endpoint_proxy, local_ray

    options = ["--home", str(folder), "--port", str(port), *more]
    if fake_nodes is not None:
        options += ["--fake-nodes", fake_nodes, *(["--storage", storage] if storage else [])]
        return start_controller(folder, options, dict(os.environ))
    from llmsched.api.server import listen

    ours = endpoint_proxy.running(folder)
    for asked in (port, *(int(text) for text in more if text.isdigit())):
        if asked and (ours is None or asked != ours.port):
            listen("127.0.0.1", asked).close()  # a port that is taken should not cost a start of Ray
    started_ray, pretend = False, local_ray.parse_nodes(nodes) if nodes else ()
    place = placement.choose(folder, ray_user, address=address, storage=storage)
    try:
        for line in placement.notes(folder, place, env):
            terminal.echo(line, err=True)
        if address is None:
            before = local_ray.read(folder)
            started_ray = before is None or not before.is_alive()
            with _waiting("starting Ray" if started_ray else "joining the Ray of this home"):
                address = local_ray.start(folder, pretend, user=place.user, pass_on=env).address
        options += ["--address", _checked_address(address), "--storage", place.storage]
        options += ["--ray-user", place.user.name] if place.user else [f"--single-user={place.why}"]
        options += [f"--env={name}" for name in env]
        return start_controller(folder, options, dict(os.environ))
    except BaseException:
        if started_ray:
            local_ray.stop(folder)
        placement.give_up(folder, place)
        raise


def _revive_ray(folder: Path, nodes: str | None, url: str, env: Sequence[str]) -> None:
    """Start the Ray of this home again if it has died under its controller, which goes on waiting for it."""
    from llmsched.api import home
    from llmsched.client import Client
    from llmsched.errors import ClusterError
    from llmsched.executors import local_ray

    before = local_ray.read(folder)
    if before is None or before.is_alive():
        return
    with _waiting("starting Ray again"):
        local_ray.restart(folder, local_ray.parse_nodes(nodes) if nodes else (), env)
    with Client(url, home.own_token(folder)) as client, _waiting("waiting for the controller to join it") as say:
        deadline = time.monotonic() + READY_WITHIN_S
        while not _is_ready(client, say):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the controller did not join the new Ray within {READY_WITHIN_S:g} s.",
                    hint=f"See {folder / 'logs' / 'controller.log'}.",
                )
            time.sleep(LOOK_EVERY_S)


def _checked_address(address: str) -> str:
    from llmsched.errors import ClusterError, SpecError

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise SpecError(
            f'"{address}" is no address of a Ray cluster.', hint="Write HOST:PORT of its GCS, as 10.0.0.1:6379."
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray answers at {address}: {error}.",
            code="no_ray",
            hint="Start it (ray start --head), or leave --address out.",
        ) from None
    return address


def start_controller(folder: Path, options: list[str], environment: dict[str, str]) -> str:
    """The url of a controller, started as a process of its own, once its cluster is there. Raises ClusterError."""
    from llmsched.api import home

    log = folder / "logs" / "controller.log"
    home.remember_start(folder, options)
    with log.open("ab") as stream:
        begin = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmsched.api", *options],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    try:
        from llmsched.client import Client  # while the controller starts

        with _waiting("starting the controller") as say:
            deadline = time.monotonic() + READY_WITHIN_S
            announced = partial(_announced_by, folder, process.pid)
            url = _wait_for(announced, process, log, begin, deadline, "did not answer", READ_EVERY_S)
            with Client(url, home.own_token(folder)) as client:
                say("waiting for the cluster")
                _wait_for(lambda: _is_ready(client, say), process, log, begin, deadline, "is not ready")
        return str(url)
    except BaseException:
        process.terminate()
        process.wait(STOP_WITHIN_S)
        raise


def _announced_by(folder: Path, pid: int) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        note = json.loads((folder / "controller.json").read_text())
        return str(note["url"]) if note["pid"] == pid else None
    return None


def _is_ready(client: Any, say: Callable[[str], None]) -> bool:
    from llmsched.errors import ClusterError

    health = client.health()
    if health.status == "insecure":
        raise ClusterError(f"the Ray cluster is not secure: {health.message}", code="insecure")
    if health.message or health.cluster.message:
        say(f"waiting for the cluster: {health.message or health.cluster.message}")
    return bool(health.status == "ready")


def _wait_for(
    done: Callable[[], Any],
    process: subprocess.Popen[bytes],
    log: Path,
    begin: int,
    deadline: float,
    otherwise: str,
    every_s: float = LOOK_EVERY_S,
) -> Any:
    from llmsched.errors import ClusterError

    while not (result := done()):
        if process.poll() is not None:
            _raise_its_error(process.returncode, _said(log, begin))
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the controller {otherwise} within {READY_WITHIN_S:g} s:\n{_said(log, begin)}\n", hint=f"See {log}."
            )
        time.sleep(every_s)
    return result


def _said(log: Path, begin: int) -> str:
    with log.open("rb") as stream:
        stream.seek(begin)
        return "\n".join(stream.read().decode(errors="replace").strip().splitlines()[-10:])


def _raise_its_error(exit_code: int, said: str) -> None:
    """The controller's last words as our error, with its exit code."""
    from llmsched.errors import ClusterError, RequestError, SpecError, StoreError

    last = said.rpartition("\n")[2]
    kind = {2: SpecError, 3: RequestError, 5: StoreError}.get(exit_code, ClusterError)
    if last.startswith("llmsched: "):
        raise kind(last.removeprefix("llmsched: "))
    raise ClusterError(f"the controller ended with {exit_code}:\n{said}")


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[Callable[[str], None]]:
    """What is being waited for: a spinner with seconds on a terminal, lines elsewhere."""
    if show.is_terminal():
        with show.err().status(f"{what} ...") as status:
            yield lambda text: status.update(f"{text} ...")
        return
    said = [what]
    terminal.echo(f"{what} ...", err=True)

    def say(text: str) -> None:
        if text != said[0]:
            said[0] = text
            terminal.echo(f"{text} ...", err=True)

    yield say


@click.command()
@click.option("--keep-ray", is_flag=True, help="Leave the local Ray running.")
@click.option("--purge", is_flag=True, help="Remove history, results, tokens and secrets of this home too.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --purge.")
@show.json_option
def down(keep_ray: bool, purge: bool, yes: bool) -> None:
    """Stop the controller, all that it runs, and the local Ray; then check that nothing is left.

    History and results stay, and work that had not ended goes on with the next llmsched up, which asks first.
    """
    from llmsched.client.transport import default_home
    from llmsched.errors import SpecError

    folder = default_home()
    if purge and keep_ray:
        raise SpecError("--keep-ray and --purge exclude each other.", code="options")
    if purge:
        from llmsched.cli import purge as purging

        purging.confirm(folder, yes)
    had_controller, processes = take_down(folder, keep_ray=keep_ray)
    left = unfinished.of_home(folder)
    if show.wants_json():
        told = {"controller": had_controller, "ray_processes": processes, "unfinished": left, "purged": purge}
        terminal.echo(json.dumps(told))
    elif not had_controller and not processes:
        terminal.echo("Nothing was running here.")
    else:
        parts = ["the controller"] if had_controller else []
        parts += [f"Ray ({processes} processes)"] if processes else []
        terminal.echo(f"Stopped {' and '.join(parts)}.{'' if purge else f' {_what_stays(folder)}'}")
    if purge:
        purging.remove(folder)
    elif left and had_controller and not show.wants_json():
        terminal.echo(f"Not ended yet: {unfinished.named(left)}. The next llmsched up asks whether they go on.")


def _what_stays(folder: Path) -> str:
    from llmsched.api import home

    known = home.isolation(folder)
    if known is None or not known.storage or Path(known.storage).is_relative_to(folder):
        return f"History and results stay in {folder}."
    return f"History stays in {folder}, results in {known.storage}."


def take_down(folder: Path, *, keep_ray: bool = False) -> tuple[bool, int]:
    """(there was a controller, how many processes of Ray there were). Raises ClusterError when something is left."""
    from llmsched.api import home
    from llmsched.executors import endpoint_proxy, local_ray

    ray = local_ray.read(folder)
    running = home.announced(folder)
    if running is not None:
        # Work on a Ray that goes down with us need not be taken down piece by piece.
        with _waiting("stopping the controller"):
            end_controller(folder, running, stop_everything=keep_ray or ray is None)
    endpoint_proxy.end(folder)
    processes = 0
    if ray is not None and not keep_ray:
        with _waiting("stopping Ray"):
            processes = local_ray.stop(folder)
    local_ray.clear(folder)
    return running is not None, processes


def end_controller(folder: Path, running: Any, *, stop_everything: bool) -> None:
    """It is gone afterwards, with what it ran if `stop_everything`. Raises ClusterError."""
    from llmsched.api import home
    from llmsched.client import Client
    from llmsched.errors import ClusterError, LlmschedError

    try:
        with Client(running.url, home.own_token(folder)) as client:
            client.shutdown(stop_everything=stop_everything)
    except LlmschedError:  # it hangs, or is just going: a signal ends it without HTTP, and leaves alone what runs
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        if stop_everything:
            terminal.echo("It did not answer: what it ran was not stopped, where its Ray is still there.", err=True)
    if _is_gone(folder, STOP_WITHIN_S):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGKILL)
    if not _is_gone(folder, 5.0):
        raise ClusterError(f"the controller (pid {running.pid}) does not end.", code="stuck")


def _is_gone(folder: Path, within_s: float) -> bool:
    from llmsched.api import home

    deadline = time.monotonic() + within_s
    while home.is_running(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True
