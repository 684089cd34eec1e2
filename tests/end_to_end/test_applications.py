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
    command = [sys.executable, str(RUN), name, "--short", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, told = process.communicate(timeout=540)
        except subprocess.TimeoutExpired:
            process.terminate()  # it takes its cluster down
            said, told = process.communicate(timeout=120)
    rows = json.loads(said or "[]")
    assert rows and all("number" in row and row["short"] for row in rows), told[-4000:]
    for row in rows:  # but for the minutes: on a busy machine they are what they are
        assert row.get("at_least", row["number"]) <= row["number"] <= row.get("at_most", row["number"]), row
        assert row["not_seen"] == [], row
