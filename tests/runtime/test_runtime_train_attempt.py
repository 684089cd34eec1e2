"""A train gang has succeeded when all its ranks have said so, whatever Ray Train's own processes come to afterwards."""

import threading
from types import SimpleNamespace

import pytest
import ray

from llmsched.runtime import train_attempt
from llmsched.runtime.attempt import Outcome
from llmsched.runtime.ranks import Ranks
from llmsched.runtime.storage import Storage
from llmsched.runtime.train_attempt import TrainAttempt


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Of two ranks, whose controller dies at the end of `fit`."""

    class Trainer:
        def __init__(self, *_, **__):
            pass

        def fit(self):
            raise ray.exceptions.RayActorError

    monkeypatch.setattr(train_attempt, "Trainer", Trainer)
    members = [
        {"rank": rank, "node": "n", "gpus": 0.0, "cpus": 1.0, "memory_bytes": 0, "custom": {}} for rank in range(2)
    ]
    life = SimpleNamespace(
        name="llms/a/0/1", order={"members": members}, left=threading.Event(), is_leaving=False, ranks=Ranks(),
        storage=Storage.at(str(tmp_path)),
    )  # fmt: skip
    return TrainAttempt(life)


def test_a_controller_that_dies_when_all_is_done_takes_nothing_back(attempt):
    for rank in range(2):
        attempt._life.ranks.finished(rank)
    attempt.run()


def test_one_that_dies_before_is_the_end_of_the_attempt(attempt):
    attempt._life.ranks.finished(0)
    with pytest.raises(Outcome) as ended:
        attempt.run()
    assert "Ray Train's controller" in str(ended.value.message)


def test_a_rank_that_failed_is_the_cause_whatever_others_said(attempt):
    for rank in range(2):
        attempt._life.ranks.finished(rank)
    attempt._life.ranks.failed(1, "ValueError: no", "error")
    with pytest.raises(Outcome) as ended:
        attempt.run()
    assert "rank 1: ValueError: no" in str(ended.value.message)
