"""Whose each thing in Ray is, from tables as Ray's control store gives them, and what a node's look makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmsched.executors.bridge import nodes as module
from llmsched.executors.bridge.nodes import LASTING_LOOKS, Nodes
from llmsched.executors.bridge.ownership import Ownership, attempt_name
from llmsched.executors.bridge.ray_internals import Actor, Group, Job, Tables, Task
from llmsched.executors.port import ExcessSeen, ForeignSeen, Member, NodeSeen
from llmsched.runtime.containment import BRIDGE, METADATA, OWNER, driver_envs, owner_mark

HERE = "cluster-of-ours-and-no-other"
HOG, OTHER = "llms/hog/0/1", "llms/other/0/1"
HOUSE, DRIVER = "01000000", "02000000"  # jobs: of the bridge, of a command's driver


def mark(attempt: str) -> dict[str, str]:
    return {OWNER: owner_mark(attempt, HERE)}


def actor(name: str, owner: str = "bridge", *, group: str = "", **more: Any) -> Actor:
    """`w-<name>` is the worker that runs it."""
    namespace = more.pop("namespace", "llmsched" if name.startswith("llms/") else "anonymous")
    values = {
        "class_name": "Nested", "job": HOUSE, "node": "n1", "pid": 1, "envs": {}, "resources": {"GPU": 1.0},
    } | more  # fmt: skip
    return Actor(id=f"a-{name}", name=name, namespace=namespace, owner=owner, worker=f"w-{name}", group=group, **values)


def replica(application: str, **more: Any) -> Actor:
    return actor(f"SERVE_REPLICA::{application}#model#x1", "w-controller", namespace="serve", **more)


def owned(
    *actors: Actor,
    groups: tuple[Group, ...] = (),
    jobs: tuple[Job, ...] = (),
    tasks: tuple[Task, ...] = (),
    **more: Any,
) -> Ownership:
    supervisors = (actor(HOG, resources={}), actor(OTHER, resources={}))
    return Ownership(
        Tables([Job(HOUSE, {BRIDGE: ""}), *jobs], [*supervisors, *actors], list(groups), tasks), HERE, **more
    )


def names(found: Ownership, attempt: str = HOG) -> list[str]:
    return [one.name for one in found.actors(attempt) if one.name != attempt]


WARM, ITS_WORKER = "llms-warm/first/0/1", "llms-warm/first/0/1/llms/hog/0/1/rank-0"


def warm(name: str, **more: Any) -> Actor:
    return actor(name, namespace="llmsched", envs=mark(WARM), **more)


DRIVEN = Job(DRIVER, {METADATA: owner_mark(HOG, HERE)})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (owned(actor(f"{HOG}/rank-0")), [f"{HOG}/rank-0"]),
        (owned(actor("nested", envs=mark(HOG))), ["nested"]),
        (owned(warm(WARM), warm(ITS_WORKER), carried={WARM: HOG}), [WARM, ITS_WORKER]),
        (owned(warm(WARM), warm(ITS_WORKER), actor("beside", envs=mark(WARM)), carried={WARM: ""}), []),
        (owned(warm(WARM), actor("beside", f"w-{WARM}", envs=mark(WARM)), carried={WARM: HOG}), [WARM, "beside"]),
        (owned(actor("plain", f"w-{HOG}")), ["plain"]),
        (owned(actor("child", f"w-{HOG}"), actor("grandchild", "w-child")), ["child", "grandchild"]),
        (owned(actor("made", "driver", job=DRIVER), jobs=(DRIVEN,)), ["made"]),
        (owned(actor("made", "driver", job=DRIVER, is_detached=True), jobs=(DRIVEN,)), ["made"]),
        (owned(actor("others", "driver", job=DRIVER), jobs=(Job(DRIVER, {}),)), []),
        (
            owned(
                actor("made", "driver", job=DRIVER), jobs=(Job(DRIVER, {}),), drivers={DRIVER: owner_mark(HOG, HERE)}
            ),
            ["made"],
        ),
        (owned(actor("elsewhere", envs={OWNER: owner_mark(HOG, "another cluster altogether")})), []),
        (owned(actor("liar", envs={OWNER: "no mark of ours"})), []),
        (owned(replica("llms/hog/0/1")), ["SERVE_REPLICA::llms/hog/0/1#model#x1"]),
        (owned(replica("llms/other/0/1", envs=mark(HOG))), []),
        (owned(replica("llms-gateway", envs=mark(HOG)), deployers={"llms-gateway": HOUSE}), []),
        (owned(actor("SERVE_CONTROLLER_ACTOR", f"w-{HOG}", namespace="serve", envs=mark(HOG))), []),
        (
            owned(actor("stats", envs=mark(HOG), is_detached=True, module="ray.data._internal.stats", resources={})),
            [],
        ),
        (
            owned(
                actor(
                    "train_v2_state_actor", envs=mark(HOG), is_detached=True,
                    module="ray.train.v2._internal.state.state_actor", resources={"node:__internal_head__": 0.001},
                )
            ),
            [],
        ),
    ],
    ids=[
        "a rank of a task", "marked", "of a supervisor that had another", "of one that has none now",
        "beside its second", "made by its supervisor", "made by what it made", "of a driver that it started",
        "detached", "of a driver of nobody's",
        "of a driver that threw its environment away", "of another cluster", "a wrong mark", "its own replica",
        "another's replica, Serve started by it", "the gateway, Serve started by it", "Serve's controller",
        "what Ray Data makes once for all", "Ray Train's record of all runs",
    ],
)  # fmt: skip
def test_an_actor_belongs_to_the_attempt_that_made_it(found: Ownership, expected: list[str]) -> None:
    assert names(found) == expected


@pytest.mark.parametrize(
    ("application", "job", "envs", "expected"),
    [
        ("mine", DRIVER, {}, {"mine"}),  # serve.run in a command
        ("mine", HOUSE, mark(HOG), {"mine"}),  # serve.run in a loop or a replica
        ("mine", "03000000", mark(HOG), set()),  # a stranger's, where this attempt was the first to start Serve
        ("mine", "", {}, set()),  # nobody knows
    ],
)
def test_a_serve_application_belongs_to_whoever_deployed_it(
    application: str, job: str, envs: dict[str, str], expected: set[str]
) -> None:
    deployers = {application: job} if job else {}
    found = owned(replica(application, envs=envs), jobs=(DRIVEN, Job("03000000", {})), deployers=deployers)
    assert found.applications(HOG) == expected
    assert set(found.strangers().values()) == {application}


def test_what_a_replica_deployed_is_its_attempt_s_when_nothing_else_of_ours_is_left() -> None:
    """An application was nobody's once the last actor of ours had gone, and stayed."""
    before = Job("0a000000", {BRIDGE: ""}, is_over=True)  # of the bridge that launched the attempt
    tables = Tables([Job(HOUSE, {BRIDGE: ""}), before], [replica("mine", envs=mark(HOG))], [])
    found = Ownership(tables, HERE, deployers={"mine": before.id})
    assert (found.applications(HOG), names(found)) == ({"mine"}, ["SERVE_REPLICA::mine#model#x1"])
    assert found.unmarked_jobs() == {}


@pytest.mark.parametrize(
    ("group", "inside", "expected"),
    [
        (Group("g", "", DRIVER, "", (("n1", {"GPU": 2.0}),)), (), HOG),
        (Group("g", "", HOUSE, "a-nested", (("n1", {"GPU": 2.0}),)), (), HOG),
        (Group("g", "", HOUSE, "a-gone", (("n1", {"GPU": 2.0}),)), (), None),
        (Group("g", "", HOUSE, "a-gone", (("n1", {"GPU": 2.0}),)), (actor("in", group="g", envs=mark(HOG)),), HOG),
        (Group("g", "", "09000000", "", (("n1", {"GPU": 2.0}),)), (), None),
        (Group("g", f"SERVE_REPLICA::{HOG}#replica#x", HOUSE, "a-gone", (("n1", {"GPU": 2.0}),)), (), HOG),
        (Group("g", "SERVE_REPLICA::theirs#replica#x", HOUSE, "a-gone", (("n1", {"GPU": 2.0}),)), (), None),
    ],
    ids=[
        "a driver's",
        "an actor's",
        "of one that is gone",
        "known by what runs in it",
        "a stranger's",
        "of Serve for a replica of ours",
        "of Serve for theirs",
    ],  # fmt: skip
)
def test_a_placement_group_belongs_to_whoever_made_it(
    group: Group, inside: tuple[Actor, ...], expected: str | None
) -> None:
    found = owned(actor("nested", envs=mark(HOG)), *inside, groups=(group,), jobs=(DRIVEN,))
    assert (found.groups(HOG) == [group]) is (expected == HOG)
    assert found.groups(OTHER) == []


def test_what_runs_in_a_group_is_held_by_the_group_alone() -> None:
    group = Group("g", "", DRIVER, "", (("n1", {"GPU": 2.0}), ("", {"GPU": 1.0})))
    found = owned(actor("in", group="g", envs=mark(HOG)), groups=(group,), jobs=(DRIVEN,)).held()
    assert sum(one.resources.get("GPU", 0.0) for one in found[HOG]) == 2.0


def test_an_attempt_with_its_supervisor_alone_has_nothing_left() -> None:
    assert owned().attempts() == set()
    assert owned(actor("nested", envs=mark(OTHER))).attempts() == {OTHER}


def test_names_of_ranks_lead_to_their_attempt() -> None:
    assert attempt_name("llms/tune/0/1/rank-3") == attempt_name("llms/tune/0/1") == "llms/tune/0/1"


def test_a_command_s_driver_is_marked_by_what_ray_reads_itself() -> None:
    from ray._private.ray_constants import RAY_ADDRESS_ENVIRONMENT_VARIABLE
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.job_config import JobConfig

    envs = driver_envs("llms/hog/0/1@here", "10.0.0.1:6379")
    text = envs[RAY_JOB_CONFIG_JSON_ENV_VAR]
    assert envs[RAY_ADDRESS_ENVIRONMENT_VARIABLE] == "10.0.0.1:6379" and len(envs) == 2
    import json

    given = JobConfig.from_json(json.loads(text))
    assert given.metadata == {METADATA: "llms/hog/0/1@here"}
    assert given.runtime_env["env_vars"] == {OWNER: "llms/hog/0/1@here"}
    assert driver_envs("", "10.0.0.1:6379") == {}


class Look:
    """A node of 4 GPUs on which the attempt HOG was given 1, and a number of actors that it made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[Any] = []
        self.made, self.functions, self.strangers, self.asked = 0, 0, 0.0, 0
        monkeypatch.setattr(module.ray, "nodes", lambda: [self.node()])
        monkeypatch.setattr(module, "available_resources_per_node", lambda: {"n1": {"GPU": self.free()}})
        self.leaving: dict[str, float | None] = {}
        monkeypatch.setattr(module, "draining_nodes", lambda: self.leaving)
        given = {HOG: (Member(0, "n1", gpus=1.0),)}
        self.nodes = Nodes(self.said.append, lambda: given, self.look_at_owners)
        assert self.after(LASTING_LOOKS + 1) == [ExcessSeen("hog/0", 1, ())]  # whatever a bridge before this one said

    def node(self) -> dict[str, Any]:
        return {"NodeID": "n1", "Alive": True, "Resources": {"GPU": 4.0}, "Labels": {}}

    def free(self) -> float:
        return 3.0 - self.made - self.functions - self.strangers

    def look_at_owners(self, *, with_tasks: bool) -> Ownership:
        self.asked += 1
        own = actor(f"{HOG}/rank-0")
        functions = tuple(
            Task(HOUSE, "n1", "", mark(HOG), {"GPU": 1.0}) for _ in range(self.functions if with_tasks else 0)
        )
        return owned(own, *(actor(f"nested-{n}", envs=mark(HOG)) for n in range(self.made)), tasks=functions)

    def after(self, looks: int) -> list[Any]:
        self.said.clear()
        for _ in range(looks):
            self.nodes.look()
        return [one for one in self.said if isinstance(one, (ExcessSeen, ForeignSeen))]


def test_what_an_attempt_takes_beyond_its_gang_is_told_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    assert look.after(LASTING_LOOKS) == [] and look.asked == 0  # nobody is asked while nothing is amiss
    look.made = 2
    seen = look.after(3 * LASTING_LOOKS)
    assert seen == [
        ForeignSeen("n1", 2.0, 0.0, 0),
        ExcessSeen("hog/0", 1, (ForeignSeen("n1", 2.0, 0.0, 0),)),
    ]
    look.made = 0
    assert look.after(LASTING_LOOKS) == [ForeignSeen("n1", 0.0, 0.0, 0), ExcessSeen("hog/0", 1, ())]


def test_remote_functions_are_asked_for_where_actors_do_not_explain_it(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    look.made, look.functions = 1, 1
    assert look.after(3 * LASTING_LOOKS)[-1] == ExcessSeen("hog/0", 1, (ForeignSeen("n1", 2.0, 0.0, 0),))


def test_what_an_actor_asks_for_and_does_not_hold_is_no_excess(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    look.strangers = 1.0
    look.after(3 * LASTING_LOOKS)
    monkeypatch.setattr(
        look, "look_at_owners", lambda **_: owned(actor("asks", envs=mark(HOG), resources={"CPU": 4.0}))
    )
    look.nodes._look_at_owners = look.look_at_owners
    assert look.after(LASTING_LOOKS) == []


def test_what_strangers_take_is_nobody_s_excess(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    look.made, look.strangers = 1, 2.0
    assert look.after(3 * LASTING_LOOKS) == [
        ForeignSeen("n1", 3.0, 0.0, 0),
        ExcessSeen("hog/0", 1, (ForeignSeen("n1", 1.0, 0.0, 0),)),
    ]


def test_a_node_is_told_again_when_ray_will_take_it_away_and_when_it_will_not(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    told = []
    for leaving in ({}, {"n1": None}, {"n1": 50.0}, {"n1": 50.0}, {"gone": 9.0}):
        look.leaving = leaving
        look.after(1)
        told += [(one.leaving, one.leaves_at) for one in look.said if isinstance(one, NodeSeen)]
    assert told == [(True, None), (True, 50.0), (False, None)]


def test_what_is_there_for_a_look_or_two_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    look.made = 2
    assert look.after(LASTING_LOOKS - 1) == []
    look.made = 0
    assert look.after(LASTING_LOOKS) == []


def test_a_group_whose_maker_has_gone_is_still_known_by_the_mark_that_its_maker_bore() -> None:
    left = Group("g1", "", HOUSE, "a-dead-controller", (("n1", {"GPU": 1.0}),), mark(HOG))
    found = owned(groups=(left, left._replace(id="g2", envs={})))
    assert [group.id for group in found.groups(HOG)] == ["g1"]
    assert found.attempts() == {HOG}


def test_a_warm_supervisor_is_the_one_of_its_attempt_and_its_workers_are_what_that_has_made() -> None:
    found = owned(warm(WARM), warm(ITS_WORKER), carried={WARM: HOG})
    assert [one.name for one in found.made(HOG)] == [ITS_WORKER] and found.attempts() == {HOG}
    assert owned(warm(WARM), carried={WARM: HOG}).attempts() == set()
    unknown = owned(warm(WARM), warm(ITS_WORKER))
    assert [one.name for one in unknown.made("llms/first/0/1")] == [ITS_WORKER], "its first one, until it has another"
