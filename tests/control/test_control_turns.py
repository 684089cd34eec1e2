"""However much comes at once, the loop does it in pieces and everybody else has a turn in between. Counted in calls."""

import asyncio

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, task, until
from turns import watched

from llmsched.control import turns
from llmsched.control.dispatch import Send
from llmsched.core.archive import AT_ONCE, ENDED_KEPT
from llmsched.executors.fake import NodeKind
from llmsched.store.sqlite import SqliteStore
from llmsched.store.tables import ArchiveQuery

FEW, MANY = 100, 400


@pytest.fixture
def at_every_piece(monkeypatch):
    """Others have a turn after each piece of work, so that the longest turn is the largest piece."""
    monkeypatch.setattr(turns, "HELD_S", 0.0)


def quick():
    cluster = fake_cluster([NodeKind(1, "A100")] * 8)
    cluster.script = lambda order: Script(runs_for_s=0.0, steps=1)
    return cluster


async def largest_pieces(folder, count):
    """(of a submission of so many tasks, of their starts and ends)"""
    (folder / str(count)).mkdir()
    async with controlling(quick(), SqliteStore(folder / str(count) / "state.sqlite")) as controller:
        specs = [task(f"t{number}", gpus=0.01) for number in range(count)]
        with watched(count=True) as seen:
            await controller.submit(specs, user=ANN)
            submitted = seen.longest.calls
            seen.clear()
            await until(lambda: all(record.outcome for record in controller.state.workloads.values()))
            return submitted, seen.longest.calls


def test_the_longest_turn_grows_far_less_than_what_is_submitted(at_every_piece, tmp_path):
    """Four times as much makes it less than twice as long: a pass still looks once at everybody who waits."""
    few, many = (asyncio.run(largest_pieces(tmp_path, count)) for count in (2 * FEW, 2 * MANY))
    assert all(after < 2 * before for before, after in zip(few, many, strict=True)), (few, many)


def test_what_ends_leaves_the_state_as_fast_as_it_comes_in():
    async def story():
        clock = ManualClock()  # stands still: a round comes of what happens, and of nothing else
        async with controlling(quick(), clock=clock) as controller:
            await controller.submit([task(f"t{number}", gpus=0.01) for number in range(MANY)], user=ANN)
            await until(lambda: all(record.outcome for record in controller.state.workloads.values()))
            await until(lambda: len(controller.state.workloads) < ENDED_KEPT + AT_ONCE)
            ended = controller.archived(ArchiveQuery(MANY))
            assert len(ended) + len(controller.state.workloads) == MANY

    asyncio.run(story())


async def largest_piece_of_a_return(count):
    cluster = fake_cluster([NodeKind(1, "A100")] * 8)
    async with controlling(cluster) as controller:
        await controller.submit([task(f"t{number}", gpus=0.01) for number in range(count)], user=ANN)
        await until(lambda: all(gang.started_at for gang in controller.state.gangs.values()))
        cluster.lose_contact()
        await until(lambda: not controller.cluster.is_there)
        told: list[Send] = []
        controller.cluster.outbox.put = told.extend
        with watched(count=True, of="Controller.run") as seen:
            cluster.regain_contact()
            await until(lambda: any(send.method == "adopt" for send in told))
            return seen.longest.calls


def test_a_cluster_that_is_back_hears_of_whom_to_adopt_in_pieces(at_every_piece):
    few, many = (asyncio.run(largest_piece_of_a_return(count)) for count in (FEW, MANY))
    assert many < 2 * few, (few, many)
