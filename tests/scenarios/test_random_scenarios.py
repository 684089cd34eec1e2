"""Small random worlds under random rules: every one comes to rest, keeps every invariant, and evicts nobody in vain."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.place import Refused, find
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.sim.scenarios import Run

SIZES = st.sampled_from([1, 1, 2, 3, 4])
LIMITS = st.one_of(st.none(), st.integers(0, 4))


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "order": draw(st.sampled_from(["priority", "strict_fifo", "best_effort"])),
        "preempt_within_queue": draw(
            st.sampled_from(["never", "lower_priority", "lower_or_newer_equal_priority"]),
        ),
        "reclaim": draw(st.sampled_from(["never", "lower_priority", "equal_or_lower_priority", "any"])),
        "preempt_while_borrowing": draw(st.sampled_from(["never", "lower_priority"])),
        "backfill": draw(st.sampled_from(["off", "easy", "conservative"])),
        "elastic": draw(st.booleans()),
        "consolidation": draw(st.booleans()),
    }
    share = draw(
        st.sampled_from([None, None, "weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"]),
    )
    if share:
        policy["fair_share"] = share
        policy["preempt_to_fair_share"] = draw(st.booleans())
    return policy


@st.composite
def queues(draw: st.DrawFn) -> list[dict[str, Any]]:
    cohort = draw(st.booleans())
    rows: list[dict[str, Any]] = [{"name": "c", "guaranteed": draw(st.integers(0, 3))}] if cohort else []
    for name in ("a", "b", "d")[: draw(st.integers(1, 3))]:
        row: dict[str, Any] = {"name": name, "guaranteed": draw(st.integers(0, 4)), "weight": draw(st.integers(0, 2))}
        for key in ("borrow_limit", "lend_limit"):
            limit = draw(LIMITS)
            if limit is not None:
                row[key] = limit
        if cohort and draw(st.booleans()):
            row["parent"] = "c"
        rows.append(row)
    if cohort and all("parent" not in row for row in rows):
        rows[-1]["parent"] = "c"
    return rows


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    nodes = [{"name": f"n{i}", "gpus": draw(st.integers(1, 4))} for i in range(draw(st.integers(1, 3)))]
    trees = draw(queues())
    names = [row["name"] for row in trees if row["name"] != "c"]
    free = {node["name"]: node["gpus"] for node in nodes}
    running = []
    for number in range(draw(st.integers(0, 6))):
        node, size = draw(st.sampled_from(sorted(free))), draw(SIZES)
        if size > free[node]:
            continue
        free[node] -= size
        job: dict[str, Any] = {
            "name": f"r{number}", "queue": draw(st.sampled_from(names)), "prio": draw(st.integers(0, 2)), "node": node,
            "preemptible": draw(st.sampled_from([True, True, True, False])),
        }  # fmt: skip
        if size > 1 and draw(st.booleans()):
            job |= {"min_members": 1, "max_members": size, "members_running": size, "gpus_per_member": 1}
        else:
            job["gpus"] = size
        if draw(st.booleans()):
            job["ends_in_s"] = draw(st.sampled_from([100, 200]))
        running.append(job)
    pending = []
    for number in range(draw(st.integers(1, 4))):
        job = {"name": f"p{number}", "queue": draw(st.sampled_from(names)), "prio": draw(st.integers(0, 2))}
        shape = draw(st.sampled_from(["one", "gang", "elastic"]))
        if shape == "one":
            job["gpus"] = draw(SIZES)
        elif shape == "gang":
            job |= {"members": draw(st.integers(2, 3)), "gpus_per_member": draw(st.integers(1, 2))}
        else:
            job |= {"min_members": 1, "max_members": draw(st.integers(2, 4)), "gpus_per_member": 1}
        if draw(st.booleans()):
            job["time_limit_s"] = draw(st.sampled_from([50, 100, 300]))
        pending.append(job)
    return {
        "id": "random", "policy": draw(policies()), "nodes": nodes, "queues": trees, "running": running,
        "pending": pending, "expect": {},
    }  # fmt: skip


@given(scenarios())
@settings(max_examples=100, deadline=None)
def test_every_small_world_comes_to_rest_and_stays_there(scenario: dict[str, Any]) -> None:
    run = Run(scenario)
    wrong, _ = run.play()  # asserts the invariants after every pass, and that it comes to rest
    assert not wrong
    for gang in run.state.gangs.values():
        assert gang.status is not Status.QUEUED or gang.reason is not None
    if any(not run.state.gangs[gang].is_active() for gang in run.round.moved):
        assert run.round.started, "whoever leaves for good leaves for somebody who starts"
    policy = scenario["policy"]
    if policy["order"] != "strict_fifo" and policy["backfill"] == "off" and policy["reclaim"] == "any":
        with Trial(run.state) as trial:  # and nobody waits who would fit as things are
            for gang in run.state.gangs.values():
                if gang.status is Status.QUEUED:
                    found = find(Pass(trial, run.policies), gang, gang.spec.min_size)
                    assert isinstance(found, Refused)
    before = run.evicted_ever
    run._change({"run_cycles": 20})
    assert run.evicted_ever == before, "idle cycles evict nobody"


@st.composite
def crowded_nodes(draw: st.DrawFn) -> dict[str, Any]:
    """One queue, one full node, and one gang that wants in."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    running = [
        {"name": f"r{i}", "queue": "q", "prio": draw(st.integers(0, 3)), "gpus": size} for i, size in enumerate(sizes)
    ]
    gpus = sum(sizes)
    job = {"name": "in", "queue": "q", "prio": draw(st.integers(0, 4)), "gpus": draw(st.integers(1, gpus))}
    return {
        "id": "crowded", "policy": {"preempt_within_queue": "lower_priority"}, "nodes": [{"name": "n", "gpus": gpus}],
        "queues": [{"name": "q", "guaranteed": gpus}], "running": running, "pending": [job], "expect": {},
    }  # fmt: skip


@given(crowded_nodes())
@settings(max_examples=100, deadline=None)
def test_victims_are_as_good_as_a_search_through_all_sets_finds(scenario: dict[str, Any]) -> None:
    """It starts exactly when some set of lower priorities makes room; nobody of those who leave could have been
    spared; no set does with lower priorities only, and none of one victim that loses no more when several leave."""
    run = Run(scenario)
    run.play()
    (want,) = scenario["pending"]
    lower = [job for job in scenario["running"] if job["prio"] < want["prio"]]
    enough = [
        chosen
        for count in range(1, len(lower) + 1)
        for chosen in combinations(lower, count)
        if sum(job["gpus"] for job in chosen) >= want["gpus"]
    ]
    gone = [job for job in lower if run.round.evicted[job["name"]]]
    assert bool(run.round.started["in"]) == bool(enough) == bool(gone)
    if not enough:
        return
    freed = sum(job["gpus"] for job in gone)
    assert all(freed - job["gpus"] < want["gpus"] for job in gone)
    top = max(job["prio"] for job in gone)
    assert top == min(max(job["prio"] for job in chosen) for chosen in enough)
    if len(gone) > 1:
        alone = [chosen[0] for chosen in enough if len(chosen) == 1 and chosen[0]["prio"] <= top]
        assert all(job["gpus"] > freed for job in alone), "one victim that loses no more is taken instead"
