"""Which elastic gangs give when somebody needs room: those that lose least by it."""

from __future__ import annotations

from ledger import Given, Launch, Nominate, Resize, cluster

from llmsched.core.facts import Resized


def lent(**knobs: float) -> Given:
    """Two fine-tunes fill eight GPUs that the queue of an endpoint owns."""
    given = cluster("1 node x 8").queue("serving", gpus=8).queue("train", gpus=0).rules(reclaim="any")
    given.scheduling(**knobs)
    given.running("large", gpus=6, elastic=(1, 6), queue="train")
    given.running("small", gpus=2, elastic=(1, 2), queue="train")
    return given


def test_of_two_the_smaller_gives_one_gpu_because_its_restart_stands_fewer_still() -> None:
    """On the day of examples/08 the largest gave every single GPU, and restarts took a third of what sharing earned."""
    given = lent().after(300.0)
    given.pending("chat", gpus=1, queue="serving", priority=80)
    assert given.decide().decisions == [Resize("small", to=1), Nominate("chat", gpus=1)]


def test_who_can_give_all_that_is_wanted_in_one_restart_is_cheaper_for_each_gpu() -> None:
    given = lent().after(300.0)
    given.pending("chat", gpus=4, queue="serving", priority=80)
    assert given.decide().decisions == [Resize("large", to=2), Nominate("chat", gpus=4)]


def test_who_restarts_anyway_gives_again_before_others_restart_too() -> None:
    given = lent().after(300.0)
    given.pending("chat", gpus=3, queue="serving", priority=80)
    assert given.turn().decisions == [Resize("large", to=3), Nominate("chat", gpus=3)]
    given.after(2.0)
    given.after(0.0, Resized(given.now, "large/0", 1, 3))
    given.pending("another", gpus=1, queue="serving", priority=80)
    assert Resize("large", to=2) in given.turn().decisions, "two seconds on 3 GPUs are lost, not thirty on 2"


def test_two_replicas_wanted_at_once_are_made_room_for_by_one_restart() -> None:
    """They were given one GPU after the other: the fine-tune restarted for each, and the second replica waited until
    the first restart was over, as seen on real Ray (38 s of 47)."""
    given = cluster("1 node x 4").queue("serving", gpus=3).queue("train", gpus=1).rules(reclaim="any")
    given.running("tune", gpus=4, elastic=(1, 4), queue="train")
    given.after(300.0)
    given.pending("a", gpus=1, queue="serving", priority=80)
    given.pending("b", gpus=1, queue="serving", priority=80)
    decided = given.turn().decisions
    assert decided == [Resize("tune", to=3), Nominate("a", gpus=1), Resize("tune", to=2), Nominate("b", gpus=1)]
    gifts = [given.state.gangs[f"{name}/0"].gifts[0] for name in "ab"]
    assert [(gift.gpus_milli, gift.lost_gpu_s) for gift in gifts] == [(1000, 120.0), (1000, 0.0)]


def test_one_that_has_not_left_yet_becomes_smaller_still_for_who_comes_meanwhile() -> None:
    given = cluster("1 node x 4").queue("serving", gpus=3).queue("train", gpus=1).rules(reclaim="any")
    given.running("tune", gpus=4, elastic=(1, 4), queue="train")
    given.after(300.0)
    given.pending("a", gpus=1, queue="serving", priority=80)
    assert given.turn().decisions == [Resize("tune", to=3), Nominate("a", gpus=1)]
    given.after(2.0)
    given.pending("b", gpus=1, queue="serving", priority=80)
    assert given.turn().decisions == [Resize("tune", to=2), Nominate("b", gpus=1)]
    given.after(0.0, Resized(given.now, "tune/0", 1, 3))  # said before it heard of the second
    assert given.turn().decisions == [], "its old size is nobody's yet"
    given.after(1.0, Resized(given.now + 1.0, "tune/0", 1, 2))
    assert given.turn().decisions == [Launch("a", gpus=1), Launch("b", gpus=1)]


def test_where_a_restart_costs_nothing_the_one_with_most_to_give_gives() -> None:
    given = lent(restart_cost_s=0.0).after(300.0)
    given.pending("chat", gpus=1, queue="serving", priority=80)
    assert given.decide().decisions == [Resize("large", to=5), Nominate("chat", gpus=1)]
