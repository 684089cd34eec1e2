"""Whoever wants to be told of a workload is told: at least once, over failures and restarts, and of nothing else."""

from __future__ import annotations

import asyncio
import json

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, phase, serve, task, until

from llmsched import crossings
from llmsched.control import notices, webhooks
from llmsched.control.vault import SHARED, Vault
from llmsched.errors import RequestError, StoreError
from llmsched.executors.port import Ended, Progress
from llmsched.spec import cluster as cluster_spec
from llmsched.store.memory import MemoryStore
from llmsched.store.tables import NoticeRow

HOOK = "https://hooks.example/T0/secret-path"
QUICK = Script(runs_for_s=0.02, steps=2, metrics={"eval.loss": 0.5})
BROKEN = Script(runs_for_s=0.02, steps=2, outcome="failed", event="bad-input", message="no such file")


class Hooks:
    """In the place of the internet: what was sent, and what becomes of the next ones."""

    def __init__(self, *troubles):
        self.troubles, self.tried, self.told = [*troubles], 0, []

    async def __call__(self, url, body, headers, allowed):
        self.tried += 1
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble is not None:
            raise trouble
        self.told.append((url, json.loads(body), dict(headers)))

    @property
    def events(self):
        return [(body["workload"], body["event"]) for _, body, _ in self.told]


def test_an_end_is_told_with_what_its_owner_would_read():
    async def story():
        hooks = Hooks()
        async with controlling(fake_cluster(good=QUICK, bad=BROKEN), post=hooks) as controller:
            await controller.submit([task("good", notify=[HOOK]), task("bad", notify=[HOOK]), task("mute")], user=ANN)
            await until(lambda: len(hooks.told) == 2)
            assert sorted(hooks.events) == [("bad", "failed"), ("good", "succeeded")]
            good = next(body for _, body, _ in hooks.told if body["workload"] == "good")
            bad = next(body for _, body, _ in hooks.told if body["workload"] == "bad")
            assert good["text"].startswith("good succeeded: after ") and good["metrics"] == {"eval.loss": 0.5}
            assert "no such file" in bad["text"] and bad["phase"] == "failed" and bad["user"] == ANN
            await until(
                lambda: [one.outcome for one in controller.notices_of(controller.state.find("good"))] == ["sent"]
            )
            (shown,) = controller.notices_of(controller.state.find("good"))
            assert shown.to == "hooks.example" and "secret-path" not in repr(shown)

    asyncio.run(story())


def test_only_what_was_asked_for_is_told():
    async def story():
        hooks = Hooks()
        wants = [{"url": HOOK, "on": ["running"]}, {"url": HOOK + "/2", "on": ["cancelled"]}]
        async with controlling(fake_cluster(), post=hooks) as controller:
            await controller.submit([task("one", notify=wants)], user=ANN)
            await until(lambda: hooks.events == [("one", "running")])
            await controller.cancel("one", ANN)
            await until(lambda: len(hooks.told) == 2)
            assert [(url, body["event"]) for url, body, _ in hooks.told] == [
                (HOOK, "running"),
                (HOOK + "/2", "cancelled"),
            ]

    asyncio.run(story())


def test_who_waits_too_long_is_told_with_the_reason_and_who_starts_before_is_not():
    async def story():
        hooks, clock = Hooks(), ManualClock()
        wants = [{"url": HOOK, "on": ["waiting"], "after": "10m"}]
        running = asyncio.ensure_future(_let_time_pass(clock))
        try:
            async with controlling(fake_cluster(clock=clock), clock=clock, post=hooks) as controller:
                await controller.submit([task("runs", gpus=2, notify=wants)], user=ANN)
                await until(lambda: phase(controller, "runs") == "running")
                await controller.submit([task("large", gpus=2, workers=2, notify=wants)], user=ANN)
                await until(lambda: hooks.told)
                assert hooks.events == [("large", "waiting")]
                _, body, _ = hooks.told[0]
                assert body["text"].startswith("large has waited for 10m: ") and body["reason"]
                assert controller.notices_of(controller.state.find("runs")) == []
        finally:
            running.cancel()

    asyncio.run(story())


async def _let_time_pass(clock):
    while True:
        await clock.advance(1.0)


def test_a_receiver_that_is_away_is_tried_again_ever_later_and_one_that_is_gone_is_not():
    async def story():
        away, gone = webhooks.Undelivered("no answer"), webhooks.Undelivered("it answered HTTP 410", for_good=True)
        hooks, clock = Hooks(away, away), ManualClock()
        running = asyncio.ensure_future(_let_time_pass(clock))
        try:
            async with controlling(
                fake_cluster(clock=clock, one=QUICK, two=QUICK), clock=clock, post=hooks
            ) as controller:
                await controller.submit([task("one", notify=[HOOK])], user=ANN)
                await until(lambda: hooks.told)
                assert hooks.tried == 3
                hooks.troubles = [gone]
                await controller.submit([task("two", notify=[HOOK])], user=ANN)
                await until(lambda: _outcomes(controller, "two") == ["given up"])
                (shown,) = controller.notices_of(controller.state.find("two"))
                assert (shown.tries, shown.error) == (1, "it answered HTTP 410")
                assert hooks.tried == 4
        finally:
            running.cancel()

    asyncio.run(story())


def test_a_receiver_that_was_away_hears_in_order_and_others_do_not_wait_for_it():
    """Before, what came while it was away was told first: a run that had succeeded, and then that it runs."""

    async def story():
        hooks, clock = Hooks(webhooks.Undelivered("no answer")), ManualClock()
        running = asyncio.ensure_future(_let_time_pass(clock))
        both, other = {"url": HOOK, "on": ["running", "succeeded"]}, {"url": f"{HOOK}/b", "on": ["succeeded"]}
        try:
            async with controlling(fake_cluster(clock=clock, one=QUICK), clock=clock, post=hooks) as controller:
                await controller.submit([task("one", notify=[both, other])], user=ANN)
                await until(lambda: len(hooks.told) == 3)
                told = [(url, body["event"]) for url, body, _ in hooks.told]
                assert told == [(f"{HOOK}/b", "succeeded"), (HOOK, "running"), (HOOK, "succeeded")]
        finally:
            running.cancel()

    asyncio.run(story())


def _outcomes(controller, name):
    return [one.outcome for one in controller.notices_of(controller.state.find(name))]


def test_what_was_not_sent_when_the_controller_died_is_sent_by_the_next_one_once():
    async def story():
        store, cluster, never = MemoryStore(), fake_cluster(one=QUICK), asyncio.Event()

        async def hangs(url, body, headers, allowed):
            await never.wait()

        async with controlling(cluster, store, post=hangs) as controller:
            await controller.submit([task("one", notify=[HOOK])], user=ANN)
            await until(lambda: _outcomes(controller, "one") == ["to send"])
        hooks = Hooks()
        async with controlling(cluster, store, post=hooks) as controller:
            await until(lambda: _outcomes(controller, "one") == ["sent"])
        async with controlling(cluster, store, post=hooks):
            pass
        assert hooks.events == [("one", "succeeded")]

    asyncio.run(story())


def test_an_end_whose_message_was_never_written_is_told_after_the_restart():
    async def story():
        store, cluster, hooks = MemoryStore(), fake_cluster(one=QUICK), Hooks()
        async with controlling(cluster, store, post=hooks) as controller:
            await controller.submit([task("one", notify=[HOOK])], user=ANN)
            await until(lambda: _outcomes(controller, "one") == ["sent"])
        store._rows[NoticeRow].clear()  # as if it had died between the entry and the row
        async with controlling(cluster, store, post=hooks) as controller:
            await until(lambda: len(hooks.told) == 2)
        assert (
            len({headers[webhooks.DELIVERY] for _, _, headers in hooks.told}) == 1
        )  # by which it is known as the same

    asyncio.run(story())


def test_the_address_and_the_key_come_from_secrets_of_the_owner(tmp_path):
    async def story():
        hooks, store = Hooks(), MemoryStore()
        vault = Vault(store, tmp_path / "key", lambda: 1.0)
        wants = [{"url_from": "SLACK", "sign_with": "SIGN"}]
        async with controlling(fake_cluster(one=QUICK), store, post=hooks, vault=vault) as controller:
            with pytest.raises(RequestError, match=r"SLACK.*SIGN"):
                await controller.submit([task("one", notify=wants)], user=ANN)
            (planned,) = await controller.plan([task("one", notify=wants)], ANN)
            assert planned.outcome == "refused"
            await vault.put(SHARED, "SLACK", HOOK, by="ops")
            await vault.put(ANN, "SIGN", "a long key", by=ANN)
            await controller.submit([task("one", notify=wants)], user=ANN)
            await until(lambda: hooks.told)
            url, body, headers = hooks.told[0]
            raw = json.dumps(body).encode()
            assert url == HOOK
            assert headers[webhooks.SIGNATURE] == webhooks.signed(
                raw, "a long key", float(headers[webhooks.STAMP])
            )[webhooks.SIGNATURE]  # fmt: skip
            (shown,) = controller.notices_of(controller.state.find("one"))
            assert shown.to == "secret SLACK"

    asyncio.run(story())


def test_a_private_address_is_refused_at_plan_and_at_apply_unless_an_operator_lists_its_host():
    async def story():
        hooks, spec = Hooks(), task("one", notify=["https://chat.internal/hook"])
        async with controlling(fake_cluster(one=QUICK), post=hooks) as controller:
            (planned,) = await controller.plan([spec], ANN)
            assert planned.outcome == "refused"
            with pytest.raises(RequestError, match=r"private host, chat\.internal"):
                await controller.submit([spec], user=ANN)
            await controller.configure(
                cluster_spec.ClusterSpec.model_validate({"limits": {"notify_hosts": ["chat.internal"]}}), by="ops"
            )
            await controller.submit([spec], user=ANN)
            await until(lambda: hooks.told)

    asyncio.run(story())


def test_a_comparison_is_told_when_it_begins_to_be_met():
    async def story():
        hooks = Hooks()
        wants = [{"url": HOOK, "on": [], "when": "step >= 2"}]
        script = Script(runs_for_s=0.2, steps=4)
        async with controlling(fake_cluster(one=script), post=hooks) as controller:
            await controller.submit([task("one", notify=wants)], user=ANN)
            await until(lambda: phase(controller, "one") == "succeeded")
            await until(lambda: hooks.told)
            assert [(body["event"], body["text"]) for _, body, _ in hooks.told] == [("when", "one: step >= 2 (2)")]
            assert hooks.told[0][1]["metrics"]["step"] >= 2

    asyncio.run(story())


def test_what_an_endpoints_app_reports_is_compared_too():
    async def story():
        hooks, cluster = Hooks(), fake_cluster()
        wants = [{"url": HOOK, "on": [], "when": "alerts > 0"}]
        async with controlling(cluster, post=hooks) as controller:
            await controller.submit([serve("watch", notify=wants, serve=APP)], user=ANN)
            await until(lambda: phase(controller, "watch") == "running")
            cluster.say(Progress("watch/0", 1, {"alerts": 0}))
            cluster.say(Progress("watch/0", 1, {"alerts": 1, "surge": "bad news"}))
            await until(lambda: hooks.told)
            body = hooks.told[0][1]
            assert (body["text"], body["metrics"]) == ("watch: alerts > 0 (1)", {"alerts": 1, "surge": "bad news"})

    asyncio.run(story())


APP = {"app": "mine:Watch"}  # code of one's own, which may report
SPIKES = [{"url": HOOK, "on": [], "when": "loss > 4"}]


async def _says(controller, cluster, gang, attempt, data):
    """And it is known."""
    cluster.say(Progress(gang, attempt, data))
    await until(lambda: controller._book.latest.get(gang, {}).items() >= _plain(data).items())


def _plain(data):
    return {name: value for name, value in data.items() if name != crossings.NAME}


def test_what_crosses_again_within_the_minute_is_told_at_its_end_and_what_stays_beyond_is_not():
    async def story():
        hooks, clock, cluster = Hooks(), ManualClock(), None
        cluster = fake_cluster(clock=clock)
        async with controlling(cluster, clock=clock, post=hooks) as controller:
            await controller.submit([serve("one", notify=SPIKES, serve=APP)], user=ANN)
            running = asyncio.ensure_future(_let_time_pass(clock))
            await until(lambda: phase(controller, "one") == "running")
            running.cancel()
            began = clock.now()
            for loss in (5, 5.5):
                await _says(controller, cluster, "one/0", 1, {"loss": loss})
            await until(lambda: hooks.told)
            for loss in (3, 6, 7, 2, 8, 1):
                await _says(controller, cluster, "one/0", 1, {"loss": loss})
            await clock.advance(30)
            assert [body["text"] for _, body, _ in hooks.told] == ["one: loss > 4 (5)"]
            running = asyncio.ensure_future(_let_time_pass(clock))
            await until(lambda: len(hooks.told) == 2)
            assert clock.now() >= began + notices.BETWEEN_CROSSINGS_S
            body = hooks.told[1][1]
            assert body["text"] == "one: loss > 4 (8, 2 times since the last message)" and body["times"] == 2
            assert body["metrics"] == {"loss": 8}
            running.cancel()

    asyncio.run(story())


def test_crossings_that_were_counted_where_they_were_reported_are_told_although_only_the_newest_value_arrives():
    async def story():
        hooks, cluster, store = Hooks(), fake_cluster(), MemoryStore()
        async with controlling(cluster, store, post=hooks) as controller:
            await controller.submit([serve("one", notify=SPIKES, serve=APP)], user=ANN)
            await until(lambda: phase(controller, "one") == "running")
            spike = {crossings.NAME: {"loss > 4": [1, 9.5, False, False]}}
            await _says(controller, cluster, "one/0", 1, {"loss": 1.0, **spike})
            await until(lambda: _outcomes(controller, "one") == ["sent"])
            assert hooks.told[0][1]["text"] == "one: loss > 4 (9.5)"
            assert crossings.NAME not in hooks.told[0][1]["metrics"]
            await _says(controller, cluster, "one/0", 1, {"loss": 1.5, **spike})
        async with controlling(cluster, store, post=hooks) as controller:
            await _says(controller, cluster, "one/0", 1, {"loss": 1.25, **spike})
            again = {crossings.NAME: {"loss > 4": [2, 8.5, False, True]}}
            await _says(controller, cluster, "one/0", 1, {"loss": 8.5, **again})
            await until(lambda: len(_outcomes(controller, "one")) == 2)
            assert len(hooks.told) == 1, "the minute since the last one counts after a restart, too"
        (_, waits) = sorted(store.rows(NoticeRow, "one"), key=lambda row: row.at)
        assert json.loads(waits.body)["text"] == "one: loss > 4 (8.5)" and waits.outcome == notices.TO_SEND

    asyncio.run(story())


def test_what_has_stayed_beyond_since_the_attempt_before_is_not_told_again():
    async def story():
        hooks, cluster = Hooks(), fake_cluster()
        wants = [{"url": HOOK, "on": [], "when": when} for when in ("loss > 4", "step > 9")]
        async with controlling(cluster, post=hooks) as controller:
            await controller.submit([task("one", notify=wants)], user=ANN)
            await until(lambda: phase(controller, "one") == "running")
            await _says(controller, cluster, "one/0", 1, {"loss": 5})
            await until(lambda: hooks.told)
            cluster.kill("llms/one/0/1")
            await until(lambda: controller.state.gangs["one/0"].attempt == 2 and phase(controller, "one") == "running")
            await _says(controller, cluster, "one/0", 2, {"loss": 6})
            await _says(controller, cluster, "one/0", 2, {"loss": 6, "step": 10})
            await until(lambda: len(hooks.told) == 2)
            assert [body["text"] for _, body, _ in hooks.told] == ["one: loss > 4 (5)", "one: step > 9 (10)"]

    asyncio.run(story())


def test_what_is_reported_together_with_the_end_is_compared():
    async def story():
        hooks, cluster = Hooks(), fake_cluster()
        async with controlling(cluster, post=hooks) as controller:
            await controller.submit([task("one", notify=SPIKES)], user=ANN)
            await until(lambda: phase(controller, "one") == "running")
            cluster.say(Progress("one/0", 1, {"loss": 7}))
            cluster.say(Ended("one/0", 1, "succeeded"))
            await until(lambda: hooks.told)
            assert hooks.events == [("one", "when")]

    asyncio.run(story())


def test_a_change_of_notify_alone_leaves_what_runs_alone_and_counts_at_once():
    async def story():
        hooks = Hooks()
        async with controlling(fake_cluster(), post=hooks) as controller:
            await controller.submit([task("one")], user=ANN)
            await until(lambda: phase(controller, "one") == "running")
            (planned,) = await controller.plan([task("one", notify=[HOOK])], ANN)
            assert planned.outcome == "changed" and planned.in_place
            await controller.submit([task("one", notify=[HOOK])], user=ANN)
            assert phase(controller, "one") == "running"
            await controller.cancel("one", ANN)
            await until(lambda: hooks.events == [("one", "cancelled")])

    asyncio.run(story())


def test_a_comparison_that_comes_while_it_runs_says_from_when_it_counts_every_value():
    """Before, the message said nothing of values between two that arrive."""

    async def story():
        told = (
            'notify: "loss > 4" holds from now on, of the newest value a second; of every value once it is started anew'
        )
        wants = [{"url": HOOK, "on": [], "when": "loss > 4"}]
        async with controlling(fake_cluster()) as controller:
            await controller.submit([task("one")], user=ANN)
            await until(lambda: phase(controller, "one") == "running")
            (planned,) = await controller.plan([task("one", notify=wants)], ANN)
            (applied,) = await controller.submit([task("one", notify=wants)], user=ANN)
            assert told in planned.diff and told in applied.diff and planned.in_place
            (again,) = await controller.plan([task("one", notify=wants)], ANN)
            assert again.diff == []
            await controller.submit([task("waits", gpus=2, workers=2)], user=ANN)
            (waiting,) = await controller.plan([task("waits", gpus=2, workers=2, notify=wants)], ANN)
            assert not [line for line in waiting.diff if "started anew" in line], "it has not begun"

    asyncio.run(story())


def test_one_users_messages_that_hang_keep_nobody_elses_back():
    async def story():
        never, told = asyncio.Event(), []

        async def post(url, body, headers, allowed):
            if "slow" in url:
                await never.wait()
            told.append(json.loads(body)["workload"])

        slow = [f"https://hooks.example/slow/{n}" for n in range(notices.AT_ONCE_OF_ONE + 3)]
        async with controlling(fake_cluster(a=QUICK, b=QUICK), post=post) as controller:
            await controller.submit([task("a", notify=slow)], user=ANN)
            await until(lambda: phase(controller, "a") == "succeeded")
            await controller.submit([task("b", notify=[HOOK])], user="bob")
            await until(lambda: told == ["b"])

    asyncio.run(story())


def test_a_store_that_fails_costs_no_message():
    async def story():
        store, hooks = MemoryStore(), Hooks()
        async with controlling(fake_cluster(one=Script(runs_for_s=0.05)), store, post=hooks) as controller:
            await controller.submit([task("one", notify=[HOOK])], user=ANN)
            store.failure = StoreError("the disk is full", code="store_failed")
            await until(lambda: controller.health.status == "degraded")
            store.failure = None
            await until(lambda: hooks.events == [("one", "succeeded")])

    asyncio.run(story())
