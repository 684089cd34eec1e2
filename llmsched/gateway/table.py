"""The route table as the gateway uses it: from the `model` of a request to a workload and, perhaps, an adapter.

A model is asked for by its id, or by its workload's name while nothing else is called so; an adapter as
"<id>:<adapter>", or plainly "<adapter>" while only one model has it and no model is called so. Apps are asked for by
their workload's name and are not models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmsched.gateway.keys import Key, KeyRing
from llmsched.gateway.limits import DEFAULT_MAX_ONGOING
from llmsched.gateway.refusals import Refused
from llmsched.policies.routing import NAMES

LISTED = 20  # names given in an error


class Route(NamedTuple):
    """One entry of the table."""

    id: str
    workload: str
    task: str
    kind: str  # model | app
    routing: str
    max_ongoing: int  # requests in hand at one replica
    replicas: tuple[str, ...]  # names of Serve applications
    adapters: dict[str, str]


class Target(NamedTuple):
    route: Route
    adapter: dict[str, str] | None  # {"name", "uri"}


class Table:
    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        data = data or {}
        self.version = int(data.get("version", 0))
        self.keys = KeyRing(data.get("keys", ()))
        self.routes = {id: _route(id, entry) for id, entry in sorted(dict(data.get("models", {})).items())}
        self._models: dict[str, Target] = {}
        ambiguous: set[str] = set()
        for route in self.routes.values():
            for name, uri in route.adapters.items():
                target = Target(route, {"name": name, "uri": uri})
                if name in self._models:
                    ambiguous.add(name)
                self._models[name] = target
                self._models[f"{route.id}:{name}"] = target
        for name in ambiguous:
            del self._models[name]
        for route in self.routes.values():  # last: a model's own id wins over an adapter's plain name
            if route.kind == "model":
                self._models[route.id] = Target(route, None)
        for route in self.routes.values():  # people know what they applied by its own name
            if route.kind == "model":
                self._models.setdefault(route.workload, Target(route, None))

    def model(self, name: Any, key: Key) -> Target:
        """Raises Refused: 400 no model named, 404 unknown (with the ones there are), 403 not for this key."""
        if not isinstance(name, str) or not name:
            raise Refused(400, "The request names no model.", code="missing_model", param="model")
        target = self._models.get(name)
        if target is None and any(r.kind == "app" and name in (r.id, r.workload) for r in self.routes.values()):
            raise Refused(404, f'"{name}" is an app. Ask it at /v1/apps/{name}.', code="model_not_found", param="model")
        if target is None:
            raise Refused(404, f'There is no model "{name}". {self._known(key)}', code="model_not_found", param="model")
        if not (key.allows(target.route.id) or key.allows(name)):
            raise Refused(403, f'This key is not for the model "{name}".', code="model_not_allowed", param="model")
        return target

    def app(self, name: str, key: Key) -> Target:
        for route in self.routes.values():
            if route.kind == "app" and name in (route.id, route.workload):
                if not key.allows(route.id):
                    raise Refused(403, f'This key is not for the app "{name}".', code="model_not_allowed")
                return Target(route, None)
        apps = [r.id for r in self.routes.values() if r.kind == "app" and key.allows(r.id)]
        there = f"Apps here: {', '.join(apps[:LISTED])}." if apps else "There are no apps here now."
        raise Refused(404, f'There is no app "{name}". {there}', code="app_not_found")

    def models(self, key: Key) -> list[tuple[str, str | None]]:
        """(name, the model it is an adapter of or None), for those this key may use."""
        listed: list[tuple[str, str | None]] = []
        for route in self.routes.values():
            if route.kind == "model":
                if key.allows(route.id):
                    listed.append((route.id, None))
                for name in sorted(route.adapters):
                    full = f"{route.id}:{name}"
                    if key.allows(route.id) or key.allows(full):
                        listed.append((full, route.id))
        return listed

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
    return Route(
        id=id,
        workload=str(entry.get("workload") or id),
        task=str(entry.get("task") or ""),
        kind=str(entry.get("kind") or "model"),
        routing=routing,
        max_ongoing=int(entry.get("max_ongoing") or DEFAULT_MAX_ONGOING),
        replicas=tuple(str(replica["app"]) for replica in entry.get("replicas", ())),
        adapters={str(name): str(uri) for name, uri in dict(entry.get("adapters") or {}).items()},
    )
