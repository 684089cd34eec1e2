"""Bounds by cron stay within `replicas`, by which limits, quota and `llmsched scale` count."""

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load

SPEC = "name: a\nkind: serve\nserve: {{model: {{source: m}}}}\nreplicas: {}\nautoscaling: {{bounds: [{}]}}\n"
DAY, NIGHT = '{cron: "0 8 * * *", min: 1, max: 2}', '{cron: "0 20 * * *", min: 0, max: 1}'


def test_bounds_within_the_range_are_taken() -> None:
    [spec] = load(SPEC.format("0..2", f"{DAY}, {NIGHT}"), "a.yaml")
    assert [(bound.min, bound.max) for bound in spec.autoscaling.bounds] == [(1, 2), (0, 1)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("replicas", "bounds", "where", "words"),
    [
        ("2", DAY, "5:23", "nothing is scaled: replicas is 2. Write a range, such as 1..4"),
        ("0..3", '{cron: "* * * * *", min: 20000, max: 20000}', "5:24", "20000..20000 is not within replicas, 0..3"),
        ("0..1", f"{NIGHT}, {DAY}", "5:62", "1..2 is not within replicas, 0..1"),
        ("1..3", f"{DAY}, {NIGHT}", "5:61", "0..1 is not within replicas, 1..3"),
    ],
    ids=["fixed", "past limits.max_replicas", "above", "below"],
)
def test_bounds_that_are_without_effect_or_past_the_range_are_refused(replicas, bounds, where, words) -> None:
    with pytest.raises(SpecError) as refused:
        load(SPEC.format(replicas, bounds), "a.yaml")
    [problem] = refused.value.problems
    assert problem.where == f"a.yaml:{where}" and words in str(problem)
