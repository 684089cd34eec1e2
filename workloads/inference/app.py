"""An app of the user's own, from the packed workdir or an installed package: whatever `serve.app` names.

    a bound application, a builder                what `serve run` takes: all its deployments in this replica
    a deployment or class that takes a Request    the same, of one deployment
    FastAPI(), Starlette()                        the same, of an ingress alone
    any other class with __call__                 takes and returns JSON: `JsonApp`

Each is an ASGI application here; what a request is then, is `http.py`'s. Start at `make`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ray import serve

from llmsched.data.parameters import RequestError
from llmsched.runtime import environment, nested, serve_graph
from llmsched.runtime.in_hand import LOST
from workloads.inference import http, placed_deployments, serve_app
from workloads.inference.json_app import JsonApp

_EXPECTED = (
    'a bound application ("app = Desk.bind()"), a builder function that returns one, a deployment, a FastAPI or '
    "Starlette application, or a class with a __call__ method"
)
Say = Callable[[str], None]


class AppServer:
    """An app behind the replica's protocol: it is asked over the route "http" alone."""

    routes = ("http",)

    def __init__(self, application: Any) -> None:
        self._application = application

    async def call(self, route: str, body: Any, adapter: str | None) -> Any:
        raise RequestError("An app is asked in a stream.", code="wrong_route")

    async def stream(self, route: str, body: Any, adapter: str | None, inbox: Any = None) -> AsyncGenerator[Any, None]:
        if not getattr(self._application, "can_answer", True):  # the next look at its health ends this replica
            raise RequestError("The replica has lost a process that answers.", code=LOST, status=503)
        async with aclosing(http.messages(self._application, body, inbox)) as batches:
            async for batch in batches:
                yield batch

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise RequestError("An app takes no adapters.", code="no_adapters")

    def check(self) -> Any:
        """The app's own word, to be awaited if it can be."""
        return self._application.check_health()

    def close(self) -> None:
        self._application.close()


def make(
    entry: str,
    args: Mapping[str, Any],
    workdir: str | None,
    *,
    name: str,
    most: int,
    member: Mapping[str, Any],
    say: Say,
    others: Sequence[Mapping[str, Any]] = (),
    open_member: Callable[[int], Any] | None = None,
    results: placed_deployments.Results = MappingProxyType({}),
) -> AppServer:
    """The app that "module:name" is. `most` requests run at once, on what `member` holds; `say` hears what has no
    effect. `others`: the members that deployments of their own have, whose processes `open_member` begins;
    `results`: what of `args` they have to fetch. Raises environment.UserError."""
    if workdir is not None:
        folder = environment.unpack(workdir, nested.place_for_code())
        os.chdir(folder)  # as in a loop: its files are named from here
        sys.path.insert(0, str(folder))
    with _deploying_nothing(entry):
        found: Any = environment.find_entry(entry, "serve.app")

    serve_graph.deploy_inside(partial(serve_app.inside, name, most, member, say))
    placed = placed_deployments.of(others, open_member)
    kind = _plain_class(found)
    if kind is not None:
        placed_deployments.check(entry, None, placed)
        if "__call__" not in dir(kind):
            raise environment.UserError(f"serve.app {entry}: expected {_EXPECTED}.")
        try:
            inspect.signature(kind).bind(**args)
        except TypeError as error:
            raise environment.UserError(f"serve.app {entry}: its arguments do not fit serve.args: {error}.") from None
        if kind is not found:  # decorated
            serve_app.check(entry, serve_app.bound(found, args), member, say, is_bound=False)
        return AppServer(JsonApp(kind(**args), most))
    application = serve_app.application_of(entry, found, args)
    placed_deployments.check(entry, application, placed)
    serve_app.check(entry, application, member, say, placed=placed)
    return AppServer(serve_app.made(application, name, most, member, placed, results))


def _plain_class(found: Any) -> type | None:
    """The class of an app that takes JSON; None for what Serve's own rules are for."""
    kind = getattr(found, "func_or_class", found)  # of a deployment that is not bound
    if not inspect.isclass(kind):
        return None
    return None if serve_graph.is_asgi(kind) or _takes_request(kind) else kind


def _takes_request(kind: type) -> bool:
    """Whether its __call__ says that it takes a Request of Starlette."""
    call = inspect.unwrap(getattr(kind, "__call__", None) or (lambda: None))  # noqa: B004
    given = [one for one in inspect.signature(call).parameters.values() if one.name != "self"]
    hint = given[0].annotation if given else None
    return hint == "Request" or str(hint).endswith("requests.Request") or getattr(hint, "__name__", "") == "Request"


@contextlib.contextmanager
def _deploying_nothing(entry: str) -> Iterator[None]:
    """Refuse a module that deploys when it is imported: what it deploys would stand beside the replica, under a name of
    its own and outside of what the gang was given."""

    def refused(*_: Any, **__: Any) -> Any:
        module = entry.partition(":")[0]
        raise environment.UserError(
            f"serve.app {entry}: module {module!r} deploys an application when it is imported (serve.run). llmsched "
            f'deploys what serve.app names: put that call under `if __name__ == "__main__":`, and name the bound '
            "application."
        )

    kept = {name: getattr(serve, name) for name in ("run", "run_many")}
    try:
        for name in kept:
            setattr(serve, name, refused)
        yield
    finally:
        for name, call in kept.items():
            setattr(serve, name, call)
