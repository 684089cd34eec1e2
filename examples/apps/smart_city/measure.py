"""Asks for tomorrow's curve on each of 60 evenings, with tomorrow's weather as it came out, then adds what was needed;
lets a power station fail; counts deaths day by day until an outbreak is told; looks for jams; reads what people say;
and calls an emergency and a drill while a study holds the GPUs."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prepare import CITY, DAY, KNOWN  # isort: skip  # it knows the way to measuring.py

import jams
import opinions
import outbreaks
from measuring import rows_of, say, until
from plainly import ridge

from llmsched import Client

DATA, DAYS, FAILS = Path(__file__).parent / "data", 60, range(18, 30)


def main() -> None:
    client = Client()
    deaths, mood, cameras, reports = (client.chat(f"city-{name}") for name in ("deaths", "mood", "cameras", "reports"))
    demand = [rows_of(DATA / f"{name}.jsonl") for name in ("demand", "coming")]
    with ThreadPoolExecutor() as beside:  # most of the time the evenings wait for what is read
        evenings = beside.submit(energy, client, *demand)
        told = outbreaks.compare(deaths, rows_of(DATA / "deaths.jsonl"))
        for each in (*told, *jams.compare(cameras, reports, DATA), *opinions.compare(reports, mood, DATA)):
            say(*each)
        evenings.result()
    client.apply("study.yaml")
    until(lambda: client.status("city-study").progress.get("step", 0) > 100, "the study computes")
    say("emergency", seconds_to_run(client, "emergency.yaml", "city-emergency"))
    until(lambda: client.status("city-study").phase == "running", "the study goes on")
    window = {"name": "drill", "start": time.time() + 5, "duration": 60, "accelerators": "A100:1", "queue": "safety"}
    client.reserve(window)
    until(lambda: any(one.state == "open" for one in client.reservations()), "the window begins")
    say("drill", seconds_to_run(client, "drill.yaml", "city-drill"))
    client.wait("city-study", timeout_s=300)
    say("cost", sum(one.cost or 0 for one in client.usage(by=["workload"]).lines if one.workload == "city-study"))
    shutil.rmtree(CITY)


def energy(client: Client, history: list[Any], coming: list[Any]) -> None:
    many, off, week, inside = len(history), [], [], 0
    for day in range(DAYS):
        tomorrow = coming[day * DAY : (day + 1) * DAY]
        said = ask(client, {"forecast": [{name: row[name] for name in KNOWN} for row in tomorrow]})
        before = [*history, *coming][many - 7 * DAY : many - 6 * DAY]
        for at, row in enumerate(tomorrow):
            off.append(abs(said["curve"][at] - row["demand"]))
            week.append(abs(before[at]["demand"] - row["demand"]))
            inside += said["low"][at] <= row["demand"] <= said["high"][at]
        many = add(client, tomorrow, many)
    error = sum(off) / len(off)
    say("energy", error, sum(week) / len(week))
    say("ridge", error, ridge(history, coming[: DAYS * DAY]))
    say("band", inside / len(off))
    tomorrow = coming[DAYS * DAY : (DAYS + 1) * DAY]
    ask(client, {"forecast": [{name: row[name] for name in KNOWN} for row in tomorrow]})
    came = [{**row, "demand": row["demand"] * (0.4 if at in FAILS else 1)} for at, row in enumerate(tomorrow)]
    add(client, came, many)
    say("odd", sum(many + at in {one["time"] for one in ask(client, {})["odd"]} for at in FAILS))


def add(client: Client, rows: list[Any], many: int) -> int:
    with (CITY / "demand.jsonl").open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    until(lambda: ask(client, {})["rows"] == many + len(rows), "the day is read")
    return many + len(rows)


def ask(client: Client, body: Any) -> Any:
    return client.chat("city-forecast").post(body)


def seconds_to_run(client: Client, file: str, name: str) -> float:
    client.apply(file).wait(timeout_s=300)
    return float((view := client.status(name)).gangs[0].started_at or 1e9) - view.submitted_at


if __name__ == "__main__":
    main()
