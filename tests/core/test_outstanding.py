"""Known work ahead, kept in step, against the sum over every gang."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.core.outstanding import SECOND, Outstanding
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI, Resources
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Workload

NAMES = [f"g{number}" for number in range(6)]


def gang(name: str, gpus: int, left: int | None, started_at: float | None, model: str) -> GangState:
    group = Group("worker", 1, (Option(None, Resources(gpus * MILLI)),))
    spec = Workload(name, name, "task", groups=(group,), model=model)
    made = GangState(name, name, 0, spec, 0.0, 0)
    made.work_left = left
    if started_at is not None:
        made.status, made.started_at, made.progress_at, made.size = Status.RUNNING, started_at, started_at, 1
    return made


puts = st.tuples(
    st.sampled_from(NAMES), st.integers(1, 8), st.none() | st.integers(0, 50), st.booleans(), st.sampled_from(["", "m"])
)


@settings(max_examples=300)
@given(st.lists(st.tuples(puts, st.booleans(), st.integers(0, 20)), max_size=60))
def test_it_is_the_sum_over_every_gang_whatever_came_and_went(steps) -> None:
    counted, known, now = Outstanding(), {}, 0
    for (name, gpus, left, runs, model), leaves, later in steps:
        now += later
        one = gang(name, gpus, left, now if runs else None, model)
        if leaves:
            counted.drop(one)
            known.pop(name, None)
        else:
            counted.put(one)
            known[name] = one
        lefts = {
            each.id: max(0, each.work_left - (now - each.progress_at if each.started_at is not None else 0))
            for each in known.values()
            if each.work_left is not None and not each.spec.model
        }
        total = sum(left * known[name].spec.groups[0].options[0].resources.gpus_milli for name, left in lefts.items())
        assert counted.ahead(now) == (max(lefts.values(), default=0) * SECOND, total * SECOND)
        assert sum(count for _, count in counted.of_models()) == sum(bool(each.spec.model) for each in known.values())


def test_what_is_no_longer_true_does_not_pile_up() -> None:
    counted = Outstanding()
    for number in range(10_000):
        counted.put(gang("g0", 1, 50 + number % 7, float(number), ""))
    assert counted.ahead(9_999.0) == ((50 + 9_999 % 7) * SECOND, (50 + 9_999 % 7) * SECOND * MILLI)
    assert max(len(counted._last), len(counted._first)) < 100
