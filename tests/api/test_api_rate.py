"""How much one token may ask: the bucket on a clock of its own, then what a client meets at a real controller."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from live import Live
from waiting import wait_until

from llmsched.api import rate
from llmsched.errors import RequestError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def buckets(per_s: float = 50.0, burst: int = 200) -> tuple[rate.Rate, Clock]:
    clock = Clock()
    return rate.Rate(lambda: (per_s, burst), clock), clock


def asked(bucket: rate.Rate, who: str, times: int) -> int:
    """How many of them were allowed."""
    allowed = 0
    for _ in range(times):
        try:
            bucket.take(who)
            allowed += 1
        except RequestError:
            pass
    return allowed


def test_a_burst_then_so_many_a_second_and_nobody_pays_for_another() -> None:
    bucket, clock = buckets()
    assert asked(bucket, "ann", 300) == 200
    assert asked(bucket, "bob", 10) == 10
    clock.now = 1.0
    assert asked(bucket, "ann", 300) == 50
    clock.now = 1e6
    assert asked(bucket, "ann", 300) == 200


def test_a_long_body_counts_as_many_short_ones_and_the_longest_is_taken_once_in_a_while() -> None:
    """What a body says is written down, for ever: 50 of a mebibyte a second fill any disk."""
    bucket, clock = buckets(per_s=50.0, burst=200)
    for _ in range(3):
        bucket.take("ann", 1 << 20)
    with pytest.raises(RequestError):
        bucket.take("ann", 1 << 20)
    assert asked(bucket, "ann", 100) == 200 - 3 * 64
    small, clock = buckets(per_s=1.0, burst=2)
    small.take("ann", 1 << 20)
    clock.now += 2.0
    small.take("ann", 1 << 20)


@pytest.mark.parametrize(("path", "counts"), [("/api/v1/apply", 64), ("/api/v1/workdirs/" + "a" * 64, 1)])
def test_what_a_body_counts_is_told_by_its_length(controller: Live, path: str, counts: int) -> None:
    taken: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate.Rate, "take", lambda self, who, body_bytes=0: taken.append(body_bytes / rate.BODY_OF_ONE))
        headers = {"authorization": f"Bearer {controller.token}", "content-type": "application/json"}
        for body in (b"x" * (1 << 20), iter([b"x"])):  # the second does not say its length
            httpx.request("PUT" if counts == 1 else "POST", controller.url + path, content=body, headers=headers)
    assert [max(1, count) for count in taken] == [counts, counts]


def test_who_is_refused_is_told_how_long_and_does_not_wait_longer_for_asking() -> None:
    bucket, clock = buckets(per_s=2.0, burst=1)
    bucket.take("ann")
    for _ in range(5):
        with pytest.raises(RequestError) as refused:
            bucket.take("ann")
        assert (refused.value.http_status, refused.value.retry_after_s) == (429, 0.5)
    clock.now += refused.value.retry_after_s
    bucket.take("ann")


def test_the_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "KNOWN_AT_MOST", 10)
    bucket, _ = buckets(burst=1)
    for number in range(1000):
        bucket.take(f"from {number}")
    assert len(bucket._buckets) == 10


def test_too_many_at_the_same_time_are_refused_until_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "OPEN_AT_MOST", 2)
    bucket, _ = buckets()
    with bucket.open("ann"):
        with bucket.open("ann"), bucket.open("bob"), pytest.raises(RequestError, match="same time"):
            bucket.open("ann").__enter__()
        with bucket.open("ann"):
            pass
    assert not bucket._open


def test_all_tokens_together_have_so_many_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "OPEN_IN_ALL", 2)
    bucket, _ = buckets()
    with bucket.open("ann"):
        with bucket.open("bob"), pytest.raises(RequestError, match="2 are answered") as refused:
            bucket.open("eve").__enter__()
        assert (refused.value.http_status, refused.value.retry_after_s) == (429, rate.TRY_AGAIN_S)
        with bucket.open("eve"):
            pass


@pytest.fixture
def strict(fresh: Live, tmp_path: Path) -> Live:
    file = tmp_path / "llmsched.yaml"
    file.write_text("limits: {requests_per_s: 20, requests_burst: 5}\n")
    fresh.client().configure(file)
    return fresh


def test_one_too_many_is_answered_429_with_the_time_to_wait(strict: Live) -> None:
    headers = {"authorization": f"Bearer {strict.token_of('ann', 'viewer')}"}
    with httpx.Client(base_url=strict.url, headers=headers) as web:
        answers = [web.get("/api/v1/queues") for _ in range(20)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        assert refused.headers["retry-after"] == "1"
        body = refused.json()
        assert (body["code"], body["exit_code"]) == ("rate", 3)
        assert 0 < body["retry_after_s"] <= 0.05
        assert web.get("/healthz").status_code == 200
    assert strict.client().queues()


def test_who_guesses_tokens_is_slowed_down_and_others_are_not(strict: Live) -> None:
    with httpx.Client(base_url=strict.url, headers={"authorization": "Bearer llms_0_wrong"}) as web:
        codes = [web.get("/api/v1/queues").status_code for _ in range(20)]
    assert codes[:5] == [401] * 5 and 429 in codes
    assert strict.client().queues()


def test_the_client_waits_as_long_as_it_is_told(strict: Live) -> None:
    with strict.client() as client:
        for _ in range(15):
            client.queues()


def test_streams_count_until_they_end(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "OPEN_AT_MOST", 1)
    headers = {"authorization": f"Bearer {fresh.token_of('ann', 'viewer')}"}
    with httpx.Client(base_url=fresh.url, headers=headers) as web:
        with web.stream("GET", "/api/v1/events") as stream:
            assert stream.status_code == 200
            assert web.get("/api/v1/queues").status_code == 429
        wait_until(lambda: web.get("/api/v1/queues").status_code == 200)
