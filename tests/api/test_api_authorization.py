"""Who may do what: every route, for every role, on one's own work, on another's, and on none.

The routes come from the route table: one that is new fails until it says what it needs and ASK says how it is asked.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import httpx
import pytest
from fastapi import Depends
from fastapi.routing import APIRoute
from live import Live
from waiting import PATIENCE_S

from llmsched.api import app, auth, callers, routes
from llmsched.errors import Bug
from llmsched.executors.fake import Script

ROUTES = {
    (method, route.path_format.removeprefix("/api/v1")): route
    for route in app.guarded_routes()
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
}

# How each route is asked so that only permissions can refuse it. `{name}` is filled in.
ASK: dict[tuple[str, str], dict[str, Any]] = {
    ("GET", "/health"): {},
    ("GET", "/metrics"): {},
    ("GET", "/nodes"): {},
    ("POST", "/nodes/{name}/drain"): {"json": {"within": "1h"}},
    ("DELETE", "/nodes/{name}/drain"): {},
    ("GET", "/queues"): {},
    ("GET", "/usage"): {},
    ("GET", "/usage/keys"): {},
    ("GET", "/reservations"): {},
    ("POST", "/reservations"): {"json": {"reservation": {"name": "no-window"}}},
    ("DELETE", "/reservations/{name}"): {},
    ("GET", "/models"): {},
    ("GET", "/config"): {},
    ("GET", "/events"): {"params": {"follow": False}},
    ("GET", "/workloads"): {},
    ("POST", "/plan"): {"json": {"specs": []}},
    ("POST", "/apply"): {"json": {"specs": []}},
    ("GET", "/workdirs/{sha256}"): {},
    ("PUT", "/workdirs/{sha256}"): {"content": b"", "headers": {"content-type": "application/zip"}},
    ("GET", "/secrets"): {},
    ("PUT", "/secrets/{name}"): {"json": {"value": "long enough"}},
    ("DELETE", "/secrets/{name}"): {},
    ("GET", "/workloads/{name}"): {},
    ("GET", "/workloads/{name}/why"): {},
    ("GET", "/workloads/{name}/diagnose"): {},
    ("GET", "/workloads/{name}/story"): {},
    ("GET", "/workloads/{name}/trials"): {},
    ("GET", "/workloads/{name}/logs"): {},
    ("GET", "/workloads/{name}/result"): {},
    ("POST", "/workloads/{name}/cancel"): {},
    ("POST", "/workloads/{name}/scale"): {"json": {"size": 1}},
    ("POST", "/workloads/{name}/rollback"): {"json": {}},
    ("POST", "/workloads/{name}/exec"): {"json": {"command": ["exit", "0"]}},
    ("PUT", "/config"): {"json": {"config": {"queus": []}}},  # a wrong one, so that it stays as it is
    ("POST", "/shutdown"): {"json": {}},
    ("GET", "/workloads/{name}/dashboard/{part}"): {},
    ("GET", "/dashboard/{part}"): {},
    ("POST", "/dashboard"): {},
    ("GET", "/api/version"): {},
    ("GET", "/api/packages/{protocol}/{package}"): {},
    ("PUT", "/api/packages/{protocol}/{package}"): {"content": b""},
    ("GET", "/api/jobs/"): {},
    ("POST", "/api/jobs/"): {"json": {"entrypoint": ""}},
    ("GET", "/api/jobs/{submission_id}"): {},
    ("GET", "/api/jobs/{submission_id}/logs"): {},
    ("POST", "/api/jobs/{submission_id}/stop"): {},
    ("DELETE", "/api/jobs/{submission_id}"): {},
}


class Who(NamedTuple):
    """The role of the token, what queue "lab" makes of its user, and what is to be answered: see and change, each for
    one's own work, another's in "lab", another's in "far", and a name that nobody has. 403 for a role is said before
    the name is looked up."""

    role: str
    in_lab: str
    general: dict[str, int]
    see: tuple[int, int, int, int]
    change: tuple[int, int, int, int]


OK = 200  # or whatever else is no refusal for want of permissions
YES, SUBMITS, AUDITS, LOOKS = (
    {"look": OK, "submit": OK, "operate": OK, "audit": OK},
    {"look": OK, "submit": OK, "operate": 403, "audit": 403},
    {"look": OK, "submit": 403, "operate": 403, "audit": OK},
    {"look": OK, "submit": 403, "operate": 403, "audit": 403},
)
NO = (403, 403, 403, 403)
#                                                              own lab  far  none  own lab  far  none
WHO = {
    "operator": Who("operator", "", YES, (OK, OK, OK, 404), (OK, OK, OK, 404)),
    "auditor": Who("auditor", "", AUDITS, (OK, OK, OK, 404), NO),
    "auditor, admin": Who("auditor", "admin", AUDITS, (OK, OK, OK, 404), NO),
    "submitter": Who("submitter", "", SUBMITS, (OK, 404, 404, 404), (OK, 404, 404, 404)),
    "queue submitter": Who("submitter", "submitter", SUBMITS, (OK, 404, 404, 404), (OK, 404, 404, 404)),
    "queue viewer": Who("submitter", "viewer", SUBMITS, (OK, OK, 404, 404), (OK, 403, 404, 404)),
    "queue admin": Who("submitter", "admin", SUBMITS, (OK, OK, 404, 404), (OK, OK, 404, 404)),
    "viewer": Who("viewer", "", LOOKS, (OK, 404, 404, 404), NO),
    "viewer, queue viewer": Who("viewer", "viewer", LOOKS, (OK, OK, 404, 404), NO),
    "viewer, queue admin": Who("viewer", "admin", LOOKS, (OK, OK, 404, 404), NO),
}
OF_WORKLOAD = [one for one in ROUTES if one[1].startswith(("/workloads/{name}", "/api/jobs/{submission_id}"))]
OTHERS = [route for route in ROUTES if route not in OF_WORKLOAD]


def user_of(who: str) -> str:
    return "u-" + who.replace(", ", "-").replace(" ", "-")


def task(name: str, queue: str = "default", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "queue": queue, "task": {"run": ["true"]}, **more}


def program(name: str, queue: str = "default") -> dict[str, Any]:
    """A workload that is a job of Ray's too."""
    return {"name": name, "kind": "ray", "queue": queue, "ray": {"run": ["true"]}}


def configure(live: Live, config: dict[str, Any]) -> None:
    answer = httpx.put(f"{live.url}/api/v1/config", json={"config": config}, headers=bearer(live.token))
    assert answer.status_code == 200, answer.text


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def asking(controller: Live):
    """(who, method, path, ...) -> the answer. Everybody has work of their own in the queue "default"."""
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    roles = {part: [user_of(who) for who, it in WHO.items() if it.in_lab == part] for part in ("viewer", "admin")}
    roles["submitter"] = ["ann", *(user_of(who) for who, it in WHO.items() if it.in_lab == "submitter")]
    queues = [{"name": "lab", "roles": roles}, {"name": "far", "roles": {"submitter": ["ann"]}}, {"name": "default"}]
    configure(controller, {"queues": queues})
    theirs = [program(name, "lab") for name in ("amber", "agate")] + [
        program(name, "far") for name in ("quartz", "flint")
    ]
    controller.client(controller.token_of("ann", "submitter")).apply(theirs)
    for who in WHO:
        own = [program(f"{what}-{user_of(who)}") for what in ("own", "lasts")]
        controller.client(controller.token_of(user_of(who), "submitter")).apply(own)
    tokens = {"ann": controller.token_of("ann", "submitter")}
    tokens |= {who: controller.token_of(user_of(who), it.role) for who, it in WHO.items()}

    def ask(who: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = bearer(tokens[who]) | more.pop("headers", {})
        path = path if path.startswith("/api/") else f"/api/v1{path}"
        return httpx.request(method, f"{controller.url}{path}", headers=headers, timeout=PATIENCE_S, **more)

    return ask


def verdict(answer: httpx.Response) -> int:
    """Refused for want of permissions, or not found, or neither."""
    assert answer.status_code < 500, answer.text
    return answer.status_code if answer.status_code in (401, 403, 404) else OK


def test_every_route_is_in_the_matrix() -> None:
    assert set(ASK) == set(ROUTES)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "path"), OTHERS)
def test_routes_about_no_workload_go_by_the_role_alone(asking, who: str, method: str, path: str) -> None:
    need = app.need_of(ROUTES[method, path])
    package = {"protocol": "gcs", "package": "_ray_pkg_a.zip", "part": "x"}
    filled = path.format(sha256="a" * 64, name="NOBODYS", **package) if "{" in path else path
    answer = asking(who, method, filled, **ASK[method, path])
    assert (answer.status_code == 403) is (WHO[who].general[need] == 403), answer.text
    assert answer.status_code != 403 or answer.json()["code"] == "role"
    assert answer.status_code < 500


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "path"), OF_WORKLOAD)
def test_routes_about_a_workload_go_by_whose_it_is(asking, who: str, method: str, path: str) -> None:
    need = app.need_of(ROUTES[method, path])
    names = (f"own-{user_of(who)}", "amber", "quartz", "nothing-of-it")
    if method == "DELETE":  # those that nobody ends here: of one that has ended nothing would be left to be asked for
        names = (f"lasts-{user_of(who)}", "agate", "flint", "nothing-of-it")
    answers = [
        asking(who, method, path.format(name=name, submission_id=name, part="x"), **ASK[method, path]) for name in names
    ]
    assert tuple(map(verdict, answers)) == getattr(WHO[who], need)
    for name, answer in zip(names, answers, strict=True):
        if answer.status_code == 404:  # in the very words for what does not exist
            assert answer.text.replace(name, "nothing-of-it") == answers[-1].text


@pytest.mark.parametrize("who", WHO)
def test_a_list_holds_what_one_may_see_and_counts_no_more(asking, who: str) -> None:
    listed = asking(who, "GET", "/workloads").json()
    names = {one["name"] for one in listed["workloads"]}
    sees = dict(zip((f"own-{user_of(who)}", "amber", "quartz"), WHO[who].see, strict=False))
    for name, answer in sees.items():
        assert (name in names) is (answer == OK)
    assert sum(listed["counts"].values()) == len(names)
    told = {
        event.partition('"workload":"')[2].partition('"')[0]
        for event in asking(who, "GET", "/events", params={"follow": False}).text.splitlines()
        if '"kind":"Submitted"' in event
    }
    assert told == names


@pytest.mark.parametrize("who", WHO)
def test_a_queue_takes_work_of_whom_it_names(asking, who: str) -> None:
    it = WHO[who]
    for queue, may in (("lab", it.in_lab in ("submitter", "admin")), ("far", False), ("default", True)):
        answer = asking(who, "POST", "/apply", json={"specs": [task(f"to-{queue}-{user_of(who)}", queue)]})
        expected = may if it.role == "submitter" else it.role == "operator"
        assert (answer.status_code == 200) is expected, answer.text
        assert expected or answer.status_code == 403


@pytest.mark.parametrize("who", WHO)
def test_who_has_which_role_is_told_to_those_who_lead(asking, who: str) -> None:
    queues = {one["name"]: one for one in asking(who, "GET", "/config").json()["configuration"]["queues"]}
    sees_all = WHO[who].role in ("auditor", "operator")
    assert (queues["lab"]["roles"]["submitter"] != []) is (sees_all or WHO[who].in_lab == "admin")
    assert (queues["far"]["roles"]["submitter"] != []) is sees_all


def beside_the_loop() -> None: ...


def test_an_application_with_a_route_that_says_no_need_or_looks_from_a_thread_does_not_start() -> None:
    async def unguarded() -> None: ...

    async def unlooked(who: callers.Looker) -> None: ...

    async def torn(who: callers.Looker, found: Annotated[None, Depends(beside_the_loop)]) -> None: ...

    for path, route, said in (
        ("/torn", torn, "torn would have .* run in a thread, while the loop changes the state"),
        ("/unguarded", unguarded, "unguarded does not say who may use it"),
        ("/workloads/{name}/more", unlooked, "does not look whose workload it is"),
    ):
        routes.router.add_api_route(path, route)
        try:
            with pytest.raises(Bug, match=said):
                app.build(object(), auth.Tokens())
        finally:
            routes.router.routes.pop()


# --- what another's work may not be found by ------------------------------------------------------------------------


def test_an_admin_of_a_queue_changes_its_work_which_stays_its_owners(asking) -> None:
    asking("ann", "POST", "/apply", json={"specs": [task("pearl", "lab", priority=3)]})
    for more in ({}, {"again": True}):
        spec = task("pearl", "lab", priority=7)
        answer = asking("queue admin", "POST", "/apply", json={"specs": [spec], **more})
        applied = answer.json()["applied"][0]
        assert applied["outcome"] == ("created" if more else "changed")
        assert asking("ann", "GET", f"/workloads/{applied['id']}").json()["user"] == "ann"
    away = asking("queue admin", "POST", "/apply", json={"specs": [task("pearl", "far")]})
    assert away.status_code == 403


@pytest.mark.parametrize("who", ["submitter", "queue viewer", "queue admin"])
def test_anothers_name_is_taken_and_nothing_more_is_told(asking, who: str) -> None:
    spec = task("quartz", priority=3)
    answer = asking(who, "POST", "/apply", json={"specs": [spec]})
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")
    assert "ann" not in answer.text
    planned = asking(who, "POST", "/plan", json={"specs": [spec]}).json()["planned"][0]
    assert (planned["outcome"], planned["reason"]["code"], planned["diff"]) == ("refused", "name_taken", [])


def reading(kind: str, source: str) -> dict[str, Any]:
    train = {"base_model": source, "datasets": [{"path": "/data/a.jsonl"}]}
    section = {"train": train} if kind == "train" else {"serve": {"model": {"source": source}}}
    return {"kind": kind, "task": None, **section}


def test_one_comes_after_and_reads_only_what_one_may_see(asking) -> None:
    def refused(name: str, **more: Any) -> str:
        spec = {key: value for key, value in task("reader", **more).items() if value is not None}
        answer = asking("submitter", "POST", "/apply", json={"specs": [spec]})
        assert answer.status_code == 404, answer.text
        return answer.text.replace(name, "NAME")

    assert refused("quartz", after=["quartz"]) == refused("nothing-of-it", after=["nothing-of-it"])
    assert refused("quartz", after=["quartz@1"]) == refused("nothing-of-it", after=["nothing-of-it@1"])
    for scheme in ("run", "model"):
        for kind in ("train", "serve"):
            told = [refused(name, **reading(kind, f"{scheme}://{name}")) for name in ("quartz", "nothing-of-it")]
            assert told[0] == told[1]


CANARY = "canary"


def test_nothing_that_an_outsider_is_told_names_anothers_work(fresh: Live) -> None:
    """One queue, two nodes of four GPUs; the outsider's work waits behind, makes way for and evicts what is hidden."""
    scripts = {"canary-model": Script(runs_for_s=0.05), "eves-model": Script(runs_for_s=0.05)}
    fresh.executor.cluster.script = lambda order: scripts.get(order.workload, Script(runs_for_s=None))
    rules = {"preemption": {"within_queue": "lower_priority"}, "backfill": "conservative"}
    queue = {"name": "default", "roles": {"submitter": ["*"], "admin": ["cleo"]}}
    configure(fresh, {"queues": [queue], "scheduling": rules})
    ann, eve = (fresh.client(fresh.token_of(user, "submitter")) for user in ("ann", "eve"))
    gpus = {"resources": {"accelerators": ["A100:4"]}}
    train = {"kind": "train", "train": {"loop": "mine.train:loop"}}
    ann.apply([{"name": "canary-model", **train}])
    ann.wait("canary-model", timeout_s=PATIENCE_S)
    ann.apply([task("canary-holds", priority=40, **gpus), task("canary-low", priority=10, **gpus)])
    for name in ("canary-holds", "canary-low"):
        fresh.hear("Bound", name + "/0")
    ann.apply([task("canary-first", workers=2, priority=35, max_runtime="1h", **gpus)])
    eve.apply([task("eves-waits", priority=5, max_runtime="2h", **gpus)])
    fresh.hear("Submitted", "eves-waits")
    planned = eve.plan([task("eves-high", priority=90, **gpus)])
    assert any("another's workload" in other.text for other in planned[0].others), planned
    eve.apply([task("eves-high", priority=90, **gpus)])
    fresh.hear("Bound", "eves-high/0")
    ann.apply([task("canary-top", workers=2, priority=95, **gpus)])
    fresh.hear("Preempt", "eves-high/0")
    eve.apply([{"name": "eves-model", **train, "publish": {"to": "canary-end"}}])
    fresh.hear("Finished", "eves-model/0")

    said: dict[str, str] = {}
    token = bearer(fresh.token_of("eve", "submitter"))
    for method, path in ROUTES:
        for name in ("eves-waits", "eves-high", "eves-model") if "{" in path and method == "GET" else ("",):
            if method == "GET":
                known = {
                    "sha256": "a" * 64,
                    "submission_id": name,
                    "protocol": "gcs",
                    "package": "_ray_pkg_a.zip",
                    "part": "",
                }
                full = path if path.startswith("/api/") else f"/api/v1{path}"
                url = fresh.url + full.format(name=name, **known)
                answer = httpx.get(url, headers=token, params=ASK[method, path].get("params"), timeout=PATIENCE_S)
                assert answer.status_code < 500
                said[f"{path} {name}"] = answer.text
    said["plan"] = planned[0].model_dump_json()
    said["models"] = httpx.get(f"{fresh.url}/api/v1/models?name=nothing", headers=token).text
    for path in ("/workloads/canari", "/workloads/canary-low/why"):
        said[path] = httpx.get(f"{fresh.url}/api/v1{path}", headers=token).text.replace("canary-low", "")
    for what, text in said.items():
        text = text.replace("canary-end", "")  # her own word
        assert CANARY not in text, what
    everything = httpx.get(f"{fresh.url}/api/v1/events?follow=false", headers=bearer(fresh.token)).text
    assert everything.count(CANARY) > 10
    assert "another's workload" in said["/events "]
