"""Two applications of examples/apps on real Ray, shortened, as a user runs them. What `--short` leaves out stands in
their expect.yaml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
RUN = Path(__file__).resolve().parents[2] / "examples" / "apps" / "run.py"


@pytest.mark.parametrize("name", ["finance", "medical"])
def test_an_application_shortened_holds_its_numbers_and_shows_what_it_is_to_show(name: str) -> None:
    done = subprocess.run([sys.executable, RUN, name, "--short", "--json"], capture_output=True, text=True, timeout=590)
    rows = json.loads(done.stdout)
    assert rows and all("number" in row and row["short"] for row in rows), done.stderr[-4000:]
    for row in rows:  # but for the minutes: on a busy machine they are what they are
        assert row.get("at_least", row["number"]) <= row["number"] <= row.get("at_most", row["number"]), row
        assert row["not_seen"] == [], row
