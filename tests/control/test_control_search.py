"""Searches and arrays: a real controller and the real search, on a fake cluster."""

from __future__ import annotations

import asyncio
import json
import random
from functools import partial

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, kinds, phase, until
from search_member import Members

from llmsched.control import trials as of_search
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.errors import RequestError
from llmsched.executors.fake import NodeKind
from llmsched.executors.port import Ended, Progress
from llmsched.runtime import rungs
from llmsched.runtime.storage import Storage, describe
from llmsched.spec.load import load_json
from llmsched.store.memory import MemoryStore

GRID = [0.5, 0.1, 0.3, 0.2]


def search(space=None, *, task=False, **more):
    resources = {"accelerators": "A100:1"}
    section = {"task": {"run": ["true"]}} if task else {"train": {"loop": "mine:loop"}, "metric": "loss"}
    tune = section | {"space": space or {"lr": {"grid": GRID}}} | more.pop("tune", {})
    return load_json({"name": "sweep", "kind": "tune", "resources": resources, "tune": tune} | more)


def by_rate(order):
    """A trial whose loss is its learning rate in the end."""
    rate = order.spec["train"]["config"]["lr"]
    return Script(runs_for_s=0.03, steps=3, loss=3 * rate, metrics={"loss": rate})


def trials(controller):
    return {name: one for name, one in controller.state.workloads.items() if one.workload.parent}


def table(controller):
    state = controller.state
    names = KnownNames(state, Permissions(Person(ANN), state.configuration), "sweep")
    return of_search.table(state, state.workloads["sweep"], lambda _: {}, names)


async def ended(controller, members, outcome="succeeded"):
    await until(lambda: controller.state.workloads["sweep"].outcome)
    await members.over()
    record = controller.state.workloads["sweep"]
    assert record.outcome == outcome, record.message
    return record


def test_a_search_tries_every_point_and_its_result_is_the_best_trials(tmp_path, monkeypatch):
    async def story():
        cluster = fake_cluster()
        members = Members(cluster, tmp_path, by_rate, monkeypatch)
        async with controlling(cluster) as controller:
            await controller.submit([search()], user=ANN)
            record = await ended(controller, members)
            assert record.metrics == {"loss": 0.1} and record.artifact.startswith("/storage/sweep.t2/0/artifact/")
            assert {name: phase(controller, name) for name in trials(controller)} == {
                f"sweep.t{number}": "succeeded" for number in (1, 2, 3, 4)
            }
            told = controller.progress["sweep/0"]
            assert (told["step"], told["total_steps"], told["best_trial"]) == (4, 4, "t2")

    asyncio.run(story())


def test_two_searches_with_room_for_one_trial_both_end(tmp_path, monkeypatch):
    """A search holds no GPU, so those that wait for trials keep none from them."""

    async def story():
        cluster = fake_cluster((NodeKind(1, "A100"),))
        members = Members(cluster, tmp_path, by_rate, monkeypatch)
        async with controlling(cluster) as controller:
            await controller.submit([search(), search(name="other")], user=ANN)
            await until(lambda: {phase(controller, name) for name in ("sweep", "other")} == {"running"})
            most = 0
            while not all(controller.state.workloads[name].outcome for name in ("sweep", "other")):
                running = sum(phase(controller, name) == "running" for name in trials(controller))
                most = max(most, running)
                await asyncio.sleep(0)
            await members.over()
            assert most == 1
            outcomes = {name: phase(controller, name) for name in trials(controller)}
            assert outcomes == {f"{of}.t{number}": "succeeded" for of in ("sweep", "other") for number in (1, 2, 3, 4)}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        (
            "resources.accelerators",
            ["A100:1", "B200:1"],
            'tune.space.resources.accelerators: "B200:1": sweep.trial: no such',
        ),
        ("workers", [1, 2000], "tune.space.workers: 2000: "),
    ],
)
def test_a_value_that_no_trial_could_start_with_is_refused_before_any_runs(path, values, said):
    """Before, the search ran and ended with the first trial that drew it."""

    async def story():
        async with controlling(fake_cluster()) as controller:
            with pytest.raises(RequestError) as refused:
                await controller.submit([search({path: {"choice": values}})], user=ANN)
            assert refused.value.message.startswith(said)
            assert not controller.state.workloads

    asyncio.run(story())


def test_what_a_search_takes_at_most_counts_the_largest_value_of_its_space():
    async def story():
        async with controlling(fake_cluster()) as controller:
            sizes = search({"resources.accelerators": {"choice": ["A100:1", "A100:2"]}}, tune={"samples": 3})
            (plan,) = await controller.plan([sizes], user=ANN)
            assert plan.reads[0] == "3 trials, at most 3 at once, each with 1 to 2 GPUs: at most 6 GPUs"
            (plan,) = await controller.plan([search(resources={"cpus": 1})], user=ANN)
            assert plan.reads[0].endswith(" at once, each with no GPU")

    asyncio.run(story())


def test_an_array_runs_once_a_point_and_names_what_failed(tmp_path, monkeypatch):
    def by_seed(order):
        seed = order.spec["envs"]["SEED"]
        return Script(runs_for_s=0.01, outcome="failed" if seed == "7" else "succeeded", event="input", message="7!")

    async def story():
        cluster = fake_cluster()
        members = Members(cluster, tmp_path, by_seed, monkeypatch)
        async with controlling(cluster) as controller:
            array = search({"envs.SEED": {"grid": list(range(100))}}, task=True)
            await controller.submit([array], user=ANN)
            await ended(controller, members, "failed")
            assert len(trials(controller)) == 100
            story = [written.entry for written in controller.entries(0, "sweep")]
            assert any("1 of 100 trials failed; the first, t8: 7!" in str(entry) for entry in story)

    asyncio.run(story())


def test_a_search_is_changed_as_itself_whatever_has_become_of_its_first_trial(tmp_path, monkeypatch):
    """Before, the first trial stood in for all: once it had ended, the change was refused in its name."""

    def by_place(order):
        first = order.spec["train"]["config"]["lr"] == GRID[0]
        return Script(runs_for_s=0.01 if first else 3600, steps=1, loss=1.0, metrics={"loss": 1.0})

    async def story():
        cluster = fake_cluster()
        members = Members(cluster, tmp_path, by_place, monkeypatch)
        async with controlling(cluster) as controller:
            await controller.submit([search(priority=40)], user=ANN)
            await until(
                lambda: "sweep.t1" in controller.state.workloads and phase(controller, "sweep.t1") == "succeeded"
            )
            await controller.submit([search(priority=60)], user=ANN)
            assert controller.state.workloads["sweep"].workload.priority == 60
            await controller.cancel("sweep", by=ANN)
            await until(lambda: controller.state.workloads["sweep"].outcome)
            with pytest.raises(RequestError, match=r"^sweep has been cancelled; what has ended cannot change"):
                await controller.submit([search(priority=50)], user=ANN)
            await controller.submit([search(priority=50)], user=ANN, again=True)
            await until(lambda: "sweep.t1@2" in controller.state.workloads)
            await controller.cancel("sweep@2", by=ANN)
            await members.over()

    asyncio.run(story())


def test_asha_ends_those_that_are_worse_and_keeps_the_best(tmp_path, monkeypatch):
    def slowly(order):
        rate = order.spec["train"]["config"]["lr"]
        return Script(runs_for_s=0.5, steps=27, loss=27 * rate, metrics={"loss": rate})

    async def story():
        cluster = fake_cluster()
        members = Members(cluster, tmp_path, slowly, monkeypatch)
        async with controlling(cluster) as controller:
            args = {"max_t": 27, "grace_period": 1, "reduction_factor": 3}
            asha = {"scheduler": "asha", "scheduler_args": args, "mode": "min"}
            space = {"lr": {"grid": [0.1, *(0.2 + number / 100 for number in range(11))]}}
            await controller.submit([search(space, tune=asha)], user=ANN)
            record = await ended(controller, members)
            assert record.metrics["loss"] == pytest.approx(0.1)
            outcomes = [one.outcome for one in trials(controller).values()]
            assert outcomes.count("cancelled") >= 4, "stopped early"

    asyncio.run(story())


def test_the_worst_of_a_population_goes_on_from_the_best_ones_checkpoint(tmp_path, monkeypatch):
    begun = {}

    def goes_on(order):
        """It has a checkpoint from the start, and reports what its rate comes to."""
        pointer = tmp_path / order.gang / "latest.json"
        found = json.loads(pointer.read_text())["published"][0]["key"] if pointer.exists() else None
        begun[order.workload] = found and (tmp_path / found / "of").read_text()
        key = f"{order.gang}/checkpoints/1-1/step-5"
        (tmp_path / key).mkdir(parents=True)
        (tmp_path / key / "of").write_text(order.workload)
        manifest = {"step": 5, "files": describe(tmp_path / key)}
        (tmp_path / key / "manifest.json").write_text(json.dumps(manifest))
        pointer.write_text(json.dumps({"attempt": 1, "epoch": 1, "published": [{"key": key, "step": 5}]}))
        rate = order.spec["train"]["config"]["lr"]
        return Script(runs_for_s=0.6, steps=20, loss=20 * rate, metrics={"loss": rate})

    async def story():
        cluster = fake_cluster()
        members = Members(cluster, tmp_path, goes_on, monkeypatch)
        async with controlling(cluster) as controller:
            pbt = {"scheduler": "pbt", "scheduler_args": {"perturbation_interval": 5, "quantile_fraction": 0.25}}
            await controller.submit([search(tune=pbt)], user=ANN)
            await ended(controller, members)
            heirs = {name: of for name, of in begun.items() if of is not None}
            assert heirs and set(heirs.values()) <= set(begun) and not {"sweep.t1", "sweep.t2"} & set(heirs)
            stopped = [name for name in trials(controller) if phase(controller, name) == "cancelled"]
            assert len(stopped) == len(heirs) == len(trials(controller)) - len(GRID)
            shown = table(controller).trials
            donors = {f"sweep.{one.name}": f"sweep.{one.goes_on_from}" for one in shown if one.goes_on_at == 5}
            assert donors == heirs, "best says from whom"

    asyncio.run(story())


class Climbers:
    """Trials of 27 steps that wait at the rungs of ASHA as real ones do, and end with their rate as loss."""

    def __init__(self, cluster, folder):
        self.cluster, self.store, self.climbing = cluster, Storage.at(folder), []

    def script(self, order):
        self.climbing.append(asyncio.create_task(self.climb(order)))
        return Script(runs_for_s=None)

    async def climb(self, order):
        await until(lambda: self.cluster.attempts[order.name].running)
        attempt, rate = self.cluster.attempts[order.name], order.spec["train"]["config"]["lr"]
        for step in range(1, 28):
            waits = True
            while waits:  # what it reports can be read for as long as it runs, also after nobody was there to read it
                told = {"step": step, "total_steps": 27, "loss": rate * (1 + 1 / step)}
                self.cluster.say(Progress(order.gang, order.attempt, told))
                await asyncio.sleep(0.002)
                if attempt.told.is_set():
                    return
                at = rungs.read(self.store, order.gang)
                waits = at.reached(step) > at.passed
        artifact = f"/storage/{order.gang}/artifact"
        self.cluster._end(
            attempt, Ended(order.gang, order.attempt, "succeeded", artifact=artifact, metrics={"loss": rate})
        )


@pytest.mark.parametrize("takes_its_search", [False, True], ids=["controller", "and search"])
def test_a_controller_that_ends_in_the_middle_changes_neither_the_trials_of_asha_nor_its_result(
    tmp_path, monkeypatch, takes_its_search
):
    rates = [0.5, 0.9, 0.21, 0.24, 0.42, 0.43, 0.05, 0.53, 0.3]

    def over(controller):
        return sum(bool(one.outcome) for one in trials(controller).values())

    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        climbers = Climbers(cluster, tmp_path)
        members = Members(cluster, tmp_path, climbers.script, monkeypatch)
        args = {"max_t": 27, "grace_period": 1, "reduction_factor": 3}
        asha = {"scheduler": "asha", "scheduler_args": args}
        async with controlling(cluster, store) as controller:
            await controller.submit([search({"lr": {"grid": rates}}, tune=asha)], user=ANN)
            await until(lambda: trials(controller))
        for count in (0, 1, 3, 5, 7):  # trials that have ended when a controller does
            async with controlling(cluster, store) as controller:
                await until(partial(lambda one, count: over(one) >= count, controller, count))
            if takes_its_search and count in (1, 5):
                cluster.kill(next(name for name in cluster.running() if "/sweep/" in name))
        async with controlling(cluster, store) as controller:
            assert not controller.state.workloads["sweep"].outcome, "it ended in the middle"
            record = await ended(controller, members)
            assert record.metrics == {"loss": 0.05} and record.artifact == "/storage/sweep.t7/0/artifact"
            assert {one.name: one.values for one in table(controller).trials} == {
                f"t{number}": {"train.config.lr": rate} for number, rate in enumerate(rates, 1)
            }
            begun = [name for name in cluster.launched if "sweep.t" in name]
            assert len(begun) == len(set(begun)) == len(rates), "each began once"
            outcomes = [one.outcome for one in trials(controller).values()]
            assert outcomes.count("cancelled") >= 4 and set(outcomes) == {"cancelled", "succeeded"}
        await asyncio.gather(*climbers.climbing)

    asyncio.run(story())


BROKEN = [
    ({"metric": "los"}, by_rate, 'no trial reports "los"; they report: loss, step, total_steps. Did you mean "loss"?'),
    ({}, lambda _: Script(runs_for_s=0.01, outcome="failed", event="input", message="no data"), "trials failed; t1: "),
]


@pytest.mark.parametrize(("tune", "script", "words"), BROKEN, ids=["metric", "all fail"])
def test_a_search_that_can_come_to_nothing_ends_soon_and_says_why(tmp_path, monkeypatch, tune, script, words):
    async def story():
        cluster = fake_cluster()
        members = Members(cluster, tmp_path, script, monkeypatch)
        async with controlling(cluster) as controller:
            many = {"samples": 50, "concurrent": 2, **tune}
            await controller.submit([search({"lr": {"uniform": [0.1, 0.9]}}, tune=many)], user=ANN)
            record = await ended(controller, members, "failed")
            assert words in str(record.message) and len(trials(controller)) < 12

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_killed_every_trial_is_asked_for_once_and_the_result_is_the_same(tmp_path, monkeypatch, seed):
    """Trials, the search, the connection and the controller, at random: the table of trials stays one."""
    chance = random.Random(seed)

    async def kill_something(cluster):
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        running = cluster.running()
        if chance.random() < 0.3:
            cluster.lose_contact()
            cluster.regain_contact()
        elif running:
            cluster.kill(chance.choice(running))

    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        members = Members(cluster, tmp_path, by_rate, monkeypatch)
        points = {"lr": {"grid": [0.9, 0.8, 0.05]}, "other": {"uniform": [0.0, 1.0]}}
        retry = {"max_restarts": 1000}
        spec = search({"lr": points["lr"], "train.config.other": points["other"]}, tune={"samples": 4}, retry=retry)
        for life in range(4):
            async with controlling(cluster, store) as controller:
                if life == 0:
                    await controller.submit([spec], user=ANN)
                for _ in range(5):
                    await kill_something(cluster)
                if life == 3:
                    record = await ended(controller, members)
                    assert record.metrics == {"loss": 0.05}
                    assert len(trials(controller)) == 12 and not controller.state.children
                    for name, one in trials(controller).items():
                        assert kinds(controller, name).count("Submitted") == 1 and one.outcome == "succeeded"
                    drawn = [str(one.workload.parcel) for one in trials(controller).values()]
                    assert len(set(drawn)) == 12
                    held = sum(gang.served_gpu_s for one in trials(controller).values()
                               for gang in controller.state.gangs_of(one))  # fmt: skip
                    assert record.children_gpu_s == pytest.approx(held)

    asyncio.run(story())
