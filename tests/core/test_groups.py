"""Gangs of several groups, of which the first needs no GPU: replicas whose deployments have members of their own."""

from __future__ import annotations

from dataclasses import replace

from ledger import Launch, Preempt, cluster

from llmsched.core import facts
from llmsched.core.configuration import Queue, Quota
from llmsched.core.possible import why_never
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Topology, Workload


def replica(name="desk", queue="default", flavor="L4", copies=2, lead=None, **more):
    lead = lead or Option(None, Resources(0, 1000))
    groups = (Group("workers", 1, (lead,)), Group("Large", copies, (Option(flavor, Resources(1000, 1000)),)))
    return Workload(name, name, "serve", groups, queue=queue, **more)


def on_l4(given, borrow=None, **quotas):
    """Queues with so many L4 of their own each, and two A100."""
    for name, count in quotas.items():
        given.queues.append(Queue(name, quotas=(("L4", Quota(count * 1000, borrow)), ("A100", Quota(2000, 0)))))
    return given


def submit(given, *workloads):
    given.now += 1.0
    for workload in workloads:
        given.state.apply(facts.Submitted(given.now, workload))
    return given


def test_a_replica_lies_on_as_many_nodes_as_its_deployments_need_and_counts_as_one():
    given = submit(on_l4(cluster("1 node x 2 A100, 2 nodes x 1 L4"), q=2), replica(queue="q"))
    assert given.turn().decisions == [Launch("desk", 2)]
    placement = given.state.gangs["desk/0"].placement
    assert [placed.group for placed in placement] == ["workers", "Large", "Large"]
    assert sorted(placed.node for placed in placement[1:]) == ["l4-0", "l4-1"]
    assert given.state.gangs["desk/0"].flavor == "L4"
    assert given.state.quota.branch("q", "L4").used == 2000 and given.state.quota.branch("q", "A100").used == 0


def test_quota_is_asked_for_what_its_deployments_take():
    given = on_l4(cluster("1 node x 4 A100, 1 node x 4 L4"), borrow=0, q=1, other=3)
    submit(given, replica(queue="q"), replica("one", queue="q", copies=1))
    decided = given.turn()
    assert decided.decisions == [Launch("one", 1)] and decided.code("desk") == "over_limit"


def test_what_a_replica_has_borrowed_for_its_deployments_is_given_back():
    given = on_l4(cluster("1 node x 2 A100, 2 nodes x 1 L4"), owner=2, guest=0).rules(reclaim="any")
    submit(given, replica("guest", queue="guest")).settle()
    assert given.phase("guest") == "running"
    decided = submit(given, replica("mine", queue="owner")).turn()
    assert Preempt("guest", "quota_reclaim") in decided.decisions


def test_a_replica_makes_room_on_all_nodes_that_its_deployments_need():
    given = (
        cluster("1 node x 2 A100, 2 nodes x 1 L4").rules(within_queue="lower_priority").policies(ordering="priority")
    )
    given.running("a", 1, flavor="L4", priority=10).running("b", 1, flavor="L4", priority=10)
    given.running("c", 2, flavor="A100", priority=10)
    submit(given, replica(priority=90)).settle()
    assert {name: given.phase(name) for name in ("desk", "a", "b", "c")} == {
        "desk": "running", "a": "waiting", "b": "waiting", "c": "running",
    }  # fmt: skip


def test_groups_on_two_types_never_take_more_than_quota_has_of_either():
    lead = Option("A100", Resources(1000, 1000))
    for owned, starts in ((1, True), (0, False)):
        given = on_l4(cluster("1 node x 4 A100, 1 node x 4 L4"), borrow=0, q=owned, other=4 - owned)
        decided = submit(given, replica(queue="q", lead=lead, copies=1)).turn()
        assert (decided.decisions == [Launch("desk", 2)]) is starts


def test_all_of_a_replica_lies_in_the_one_domain_that_its_spec_asks_for():
    given = cluster("2 nodes x 2 L4")
    for name in "abc":
        given.running(name, 1, flavor="L4")
    given.after(1.0, facts.Finished(given.now, "a/0", 1, "succeeded"))  # one is free on each node
    one_node = Topology(required="node")
    decided = submit(given, replica(topology=one_node), replica("one", copies=1, topology=one_node)).turn()
    assert decided.decisions == [Launch("one", 1)] and decided.code("desk") == "topology"
    assert len({placed.node for placed in given.state.gangs["one/0"].placement}) == 1
    assert submit(given, replica("three", copies=3, topology=one_node)).turn().code("three") == "impossible"


def test_a_group_grows_in_the_domain_that_it_began_in():
    """Only what the gang asks for was looked at: a group that is to lie on one node grew onto another."""
    group = Group("workers", 1, (Option("L4", Resources(1000)),), Topology(required="node"))
    spec = Workload("grows", "grows", "train", (group,), min_size=1, max_size=4)
    given = cluster("2 nodes x 3 L4").running("other", 2, flavor="L4").policies(elasticity="even")
    submit(given, spec).settle()
    given.after(100.0, facts.Finished(given.now, "other/0", 1, "succeeded")).settle()
    grown = given.state.gangs["grows/0"].placement
    assert len(grown) == 3 and len({placed.node for placed in grown}) == 1
    given.state.apply(facts.Submitted(given.now, replace(spec, id="again", name="again", topology=Topology("rack"))))
    assert spec.levels(group) == ("node",) and given.state.workloads["again"].workload.levels(group) == ("rack", "node")


def test_who_asks_for_more_of_one_flavor_than_its_queue_may_ever_have_stands_before_nobody():
    """One A100 and two L4 were counted as three of the first flavor, of which the queue may have enough."""
    queue = Queue("q", quotas=(("A100", Quota(4000, 0)), ("L4", Quota(1000, 0))))
    given = cluster("1 node x 4 A100, 1 node x 4 L4").scheduling(order="strict_fifo")
    given.queues.append(queue)
    vast = replica("vast", "q", lead=Option("A100", Resources(1000, 1000)), priority=90)
    never = why_never(given.state, vast)
    assert never is not None and never.code == "over_limit" and dict(never.message.args)["most"] == 1000
    decided = submit(given, vast, replica("small", "q", copies=1)).turn()
    assert decided.decisions == [Launch("small", 1)] and decided.code("vast") == "over_limit"
