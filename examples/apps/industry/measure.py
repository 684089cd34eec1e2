"""Asks for fat and strength, shifts a sensor, and takes a node and then a GPU away from a study."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from prepare import SENSOR  # isort: skip  # it knows the way to measuring.py

import faults
import pandas
from measuring import by_columns, rows_in, say, until
from sklearn.metrics import r2_score

from llmsched import Client

DATA, SHIFT, NODE = Path(__file__).parent / "data", 0.2, "node-2"  # of the sensor's spread


def main() -> None:
    client = Client()
    client.apply("study.yaml")
    for name, target in (("fat", "fat"), ("strength", "compressive_strength")):
        learnt, tested = tables(name)
        number = r2_score(tested[target], ask(client, name, tested, target))
        say(name, number, r2_score(tested[target], by_columns(learnt, tested, target, "linear")))
        if name == "strength":
            say(f"{name}_boosting", number, r2_score(tested[target], by_columns(learnt, tested, target, "boosting")))
    sensor(client)
    until(
        lambda: step(client) > 1000 and client.status("mixture-study").gangs[0].size == 2, "it computes on both nodes"
    )
    lost(client)
    client.apply("inspection.yaml").wait(timeout_s=120)  # the one GPU that is left
    until(lambda: client.status("mixture-study").phase == "running", "the study goes on after the inspection")
    client.cancel("mixture-study")


def sensor(client: Client) -> None:
    """A reading is called shifted where it is further from what the others say than any was that was learnt from; the
    control chart: further from its own mean than three times its spread."""
    learnt, tested = tables("sensor")
    usual = max(abs(learnt[SENSOR] - ask(client, "sensor", learnt, SENSOR)))
    middle, spread = learnt[SENSOR].mean(), learnt[SENSOR].std()
    for part, shift in (("shifted", SHIFT * spread), ("mistaken", 0.0)):
        read = tested.assign(**{SENSOR: tested[SENSOR] + shift})
        found = abs(read[SENSOR] - ask(client, "sensor", read, SENSOR)) > usual
        say(part, found.mean(), (abs(read[SENSOR] - middle) > 3 * spread).mean())


def lost(client: Client) -> None:
    before = step(client)
    began = time.monotonic()
    faults.kill_node(faults.home(), NODE)
    until(lambda: attempts(client) == [(2, "running")], "it goes on without the node")
    print(f"at step {before} when {NODE} was lost", file=sys.stderr)
    say("again", max(0, before - resumed(client)))
    say("back", time.monotonic() - began)


def resumed(client: Client) -> int:
    """The step of the last checkpoint before it went on."""
    kinds = [(one.kind, one.data) for one in client.events(follow=False) if one.workload == "mixture-study"]
    lost = max(at for at, (kind, _) in enumerate(kinds) if kind == "Launch")
    return max((data["step"] for kind, data in kinds[:lost] if kind == "CheckpointPublished"), default=0)


def step(client: Client) -> int:
    return int(client.status("mixture-study").progress.get("step", 0))


def attempts(client: Client) -> list[tuple[int, str]]:
    return [(gang.attempt, gang.status) for gang in client.status("mixture-study").gangs]


def tables(name: str) -> tuple[Any, Any]:
    return pandas.read_csv(DATA / f"{name}-train.csv"), pandas.read_csv(DATA / f"{name}-test.csv")


def ask(client: Client, name: str, tested: Any, target: str) -> Any:
    said = client.chat(name).post({"rows": rows_in(tested, target)})["said"]
    return pandas.Series([one["value"] for one in said], index=tested.index)


if __name__ == "__main__":
    main()
