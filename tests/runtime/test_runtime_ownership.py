"""Whose a placement group is, from nothing but what Ray's tables say."""

from __future__ import annotations

from llmsched.runtime.ownership import Actor, Group, Tables


def actor(name: str, owner: str, *, called: str = "", alive: bool = True, space: str = "llmsched") -> Actor:
    return Actor(f"{name}-id", f"{name}-process", f"{owner}-process", called, space, "Any", alive)


def tables(actors: list[Actor], **groups: str) -> Tables:
    """`groups`: name -> who made it."""
    made = tuple(Group(name, f"{creator}-id", name.startswith("detached")) for name, creator in groups.items())
    return Tables({one.id: one for one in actors}, made)


TUNE = actor("supervisor", "bridge", called="llms/tune/0/1")
FIT = actor("fit", "supervisor")


def test_a_group_belongs_to_the_attempt_whose_supervisor_owns_its_maker_through_any_number_of_hands() -> None:
    nested = [TUNE, FIT, actor("worker", "fit"), actor("nested", "worker")]
    found = tables(nested, own="fit", theirs="nested")
    assert found.attempt_of(found.actors["nested-id"]) == "llms/tune/0/1"
    assert found.left_behind({"llms/tune/0/1"}, "llmsched") == []
    assert found.left_behind(set(), "llmsched") == ["own", "theirs"]


def test_a_group_whose_maker_died_with_its_supervisor_is_left_behind_though_nobody_told_of_it() -> None:
    dead = [TUNE._replace(is_alive=False), FIT._replace(is_alive=False)]
    assert tables(dead, own="fit").left_behind({"llms/other/0/1"}, "llmsched") == ["own"]


def test_a_group_of_a_live_attempt_whose_first_maker_is_gone_is_left_to_its_supervisor() -> None:
    found = tables([TUNE, FIT._replace(is_alive=False)], own="fit")
    assert found.left_behind({"llms/tune/0/1"}, "llmsched") == []
    assert [group.id for group in found.owned_by("supervisor-process")[1]] == ["own"]


def test_what_other_people_or_serve_made_is_let_be() -> None:
    serve = actor("controller", "bridge", called="SERVE_CONTROLLER_ACTOR", space="serve")
    theirs = actor("theirs", "driver", space="anonymous", alive=False)
    alive = actor("mine", "driver")  # in our namespace, and its maker lives
    found = tables([serve, theirs, alive], replica="controller", gone="theirs", held="mine", driver="nobody")
    assert found.left_behind(set(), "llmsched") == []


def test_a_ring_of_owners_ends() -> None:
    ring = [actor("a", "b"), actor("b", "a")]
    assert tables(ring, one="a").attempt_of(ring[0]) is None
