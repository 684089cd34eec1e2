"""The route table as the gateway uses it: from the `model` of a request to a workload and, perhaps, an adapter.

A model is asked for by its id, or by its workload's name while nothing else is called so; an adapter as
"<id>:<adapter>", or plainly "<adapter>" while only one model has it and no model is called so. Apps are asked for by
their workload's name and are not models. A name is looked for among what the key reaches: the rest is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmsched.data.tasks import KINDS
from llmsched.gateway.keys import Key, KeyRing
from llmsched.gateway.latencies import Kind
from llmsched.gateway.limits import DEFAULT_MAX_ONGOING, DEFAULT_TIMEOUT_S
from llmsched.gateway.refusals import Refused
from llmsched.gateway.routes import APP_ROUTES
from llmsched.policies.routing import NAMES

LISTED = 20  # names given in an error


class Prefill(NamedTuple):
    """Who reads the prompts of an endpoint: the workload; those alone that have so many tokens to read."""

    workload: str
    from_tokens: int


class Route(NamedTuple):
    """One entry of the table."""

    id: str
    workload: str
    name: str  # of the workload
    task: str
    kind: str  # model | app
    routing: str
    max_ongoing: int  # requests in hand at one replica
    timeout_s: float  # the most a request may take
    hold_s: float  # the most of it that it may wait for a replica
    replicas: dict[str, Kind]  # names of Serve applications, with what each is
    adapters: dict[str, str]
    refused: dict[str, str]  # adapters that a replica could not load, and why
    role: str  # "prefill": it reads prompts for others alone
    prefill: Prefill | None
    kv: dict[str, str]  # of replicas that give or take keys and values: those of one word understand each other

    def check_answers(self, asked: str) -> None:
        """Raises Refused (400) for what no model of this task answers: nothing is woken or held for it. A replica may
        answer less, as a model without a chat template does."""
        if self.role:
            message = f'"{self.id}" reads prompts for other endpoints, and answers none itself. Ask one of those.'
            raise Refused(400, message, code="wrong_route", param="model")
        if (kind := KINDS.get(self.task)) is not None and asked not in kind.answers:
            there = ", ".join(f"/v1/{one}" for one in kind.answers) or "nothing"
            message = f"This model does not answer /v1/{asked}, only {there}."
            raise Refused(400, message, code="wrong_route", param="model")


class Target(NamedTuple):
    route: Route
    adapter: dict[str, str] | None  # {"name", "uri"}

    @property
    def name(self) -> str:
        """In full."""
        return self.route.id + (f":{self.adapter['name']}" if self.adapter else "")

    def check_loads(self) -> None:
        """Raises Refused (400), as the replica did that was asked first: to ask again does not help."""
        if self.adapter is not None and (why := self.route.refused.get(self.adapter["name"])) is not None:
            raise Refused(400, why, code="adapter_not_loaded", param="model")


class Table:
    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        data = data or {}
        self.version = int(data.get("version", 0))
        self.gateways = max(1, int(data.get("gateways") or 1))
        self.keys = KeyRing(data.get("keys", ()))
        self.routes = {id: _route(id, entry) for id, entry in sorted(dict(data.get("models", {})).items())}
        self._failed = dict(data.get("failed") or {})  # the name of the workload, by the id of the endpoint
        self._named: dict[str, list[tuple[int, Target]]] = {}  # what a name may mean: the lower number goes first
        for route in self.routes.values():
            for name, uri in route.adapters.items():
                adapter = Target(route, {"name": name, "uri": uri})
                self._named.setdefault(f"{route.id}:{name}", []).append((0, adapter))
                self._named.setdefault(name, []).append((2, adapter))
            for name in route.refused:
                adapter = Target(route, {"name": name, "uri": ""})
                for asked in (f"{route.id}:{name}", name):
                    self._named.setdefault(asked, []).append((3, adapter))
            self._named.setdefault(route.id, []).append((0, Target(route, None)))
            if route.name != route.id:  # people know what they applied by its own name
                self._named.setdefault(route.name, []).append((1, Target(route, None)))

    def model(self, name: Any, key: Key) -> Target:
        """Raises Refused: 400 no model named, or an adapter that no replica loads (with why); 404 unknown to this key
        (with the ones it knows), or an endpoint that has failed."""
        if not isinstance(name, str) or not name:
            raise Refused(400, "The request names no model.", code="missing_model", param="model")
        found = self._meant(name, key)
        models = [target for target in found if target.route.kind == "model"]
        if len(models) == 1:
            models[0].check_loads()
            return models[0]
        if models:
            full = " or ".join(f"{one.route.id}:{name}" for one in models)
            message = f'"{name}" is an adapter of several models. Ask for {full}.'
        elif found:
            message = f'"{name}" is an app. Ask it at /v1/apps/{name}.'
        else:
            self._check_has_not_failed(name.partition(":")[0], key)
            message = f'There is no model "{name}". {self._known(key)}'
        raise Refused(404, message, code="model_not_found", param="model")

    def app(self, name: str, key: Key) -> Target:
        """Raises Refused: 404 unknown to this key (with the ones it knows), or an endpoint that has failed."""
        for target in self._meant(name, key):
            if target.route.kind == "app":
                return target
        self._check_has_not_failed(name, key)
        apps = [route.id for route in self._reached(key) if route.kind == "app"]
        there = f"Apps here: {', '.join(apps[:LISTED])}." if apps else "There are no apps here now."
        raise Refused(404, f'There is no app "{name}". {there}', code="app_not_found")

    def _check_has_not_failed(self, name: str, key: Key) -> None:
        """Raises Refused for what was there, so that nobody looks for a wrong name. Why it failed its owner sees."""
        for id, workload in self._failed.items():
            if name in (id, workload) and key.reaches(id):
                message = f'"{name}" has failed and answers nothing until it is applied again: llmsched why {workload}.'
                raise Refused(404, message, code="endpoint_failed", param="model")

    def app_for(self, name: str, path: str, key: Key) -> Target:
        """The app that is asked by one of OpenAI's routes. Raises Refused: 404 for a model too, as none answers it."""
        if all(target.route.kind == "app" for target in self._meant(name, key)):
            return self.app(name, key)
        message = f'"{name}" does not answer {path}: {APP_ROUTES[path]}. An app that "model" names can (serve.app).'
        raise Refused(404, message, code="not_supported", param="model")

    def models(self, key: Key) -> list[tuple[str, str | None]]:
        """(name, the model it is an adapter of or None), for those this key reaches."""
        listed: list[tuple[str, str | None]] = []
        for route in self._reached(key):
            if route.kind == "model" and not route.role:
                listed.append((route.id, None))
                listed += [(f"{route.id}:{name}", route.id) for name in sorted(route.adapters)]
        return listed

    def _reached(self, key: Key) -> list[Route]:
        return [route for route in self.routes.values() if key.reaches(route.id)]

    def _meant(self, name: str, key: Key) -> list[Target]:
        """What the name means to who holds this key. Everything that is looked for is looked for here."""
        found = [one for one in self._named.get(name, ()) if key.reaches(one[1].route.id)]
        first = min((rank for rank, _ in found), default=0)
        return [target for rank, target in found if rank == first]

    def _known(self, key: Key) -> str:
        names = [name for name, _ in self.models(key)]
        if not names:
            return "There are no models here now."
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return f"Models here: {', '.join(names[:LISTED])}{more}."


def _route(id: str, entry: Mapping[str, Any]) -> Route:
    routing = str(entry.get("routing") or NAMES[0]).replace("_", "-")
    if routing not in NAMES:
        raise ValueError(f'model "{id}": unknown routing "{routing}", expected one of {", ".join(NAMES)}')
    prefill = entry.get("prefill")
    return Route(
        id=id,
        workload=str(entry.get("workload") or id),
        name=str(entry.get("name") or entry.get("workload") or id),
        task=str(entry.get("task") or ""),
        kind=str(entry.get("kind") or "model"),
        routing=routing,
        max_ongoing=int(entry.get("max_ongoing") or DEFAULT_MAX_ONGOING),
        timeout_s=float(entry.get("timeout_s") or DEFAULT_TIMEOUT_S),
        hold_s=float(entry.get("hold_s") or 0.0),
        replicas={
            str(replica["app"]): Kind(str(replica.get("model") or ""), str(replica.get("flavor") or ""))
            for replica in entry.get("replicas", ())
        },
        adapters={str(name): str(uri) for name, uri in dict(entry.get("adapters") or {}).items()},
        refused={str(name): str(why) for name, why in dict(entry.get("refused") or {}).items()},
        role=str(entry.get("role") or ""),
        prefill=Prefill(str(prefill["workload"]), int(prefill["from_tokens"])) if prefill else None,
        kv={str(each["app"]): str(each["kv"]) for each in entry.get("replicas", ()) if each.get("kv")},
    )
