"""When a task for work by hand is in use: a table of hours, no clock."""

from llmsched.runtime.inactivity import Inactivity

HOUR = 3600.0


def test_who_asks_and_who_computes_uses_it_and_a_server_that_waits_does_not() -> None:
    one = Inactivity(2 * HOUR, 0.0)
    one.computed(0, 1.0, 0.0)
    one.computed(0, 1.0 + 0.5 * HOUR, HOUR)  # half a core
    assert one.lasts_s(1.5 * HOUR) == 0.5 * HOUR
    one.computed(0, 1.0 + 0.5 * HOUR + 50.0, 2.5 * HOUR)  # a server that waits
    assert one.lasts_s(2.5 * HOUR) == 1.5 * HOUR
    one.used(2.5 * HOUR)
    one.used(1.0 * HOUR)  # told late: it counts from the last
    assert not one.is_over(4.4 * HOUR) and one.is_over(4.5 * HOUR)


def test_processes_that_have_just_begun_count_as_use() -> None:
    one = Inactivity(HOUR, 0.0)
    one.computed(0, 500.0, 0.0)
    one.computed(0, 1.0, 0.5 * HOUR)  # others, from the beginning
    assert one.lasts_s(0.5 * HOUR) == 0.0
