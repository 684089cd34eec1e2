"""examples/06_replay_a_trace: its commands run, and its answers point the way its README says."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from llmsched.cli.main import cli

HERE = Path(__file__).parents[2] / "examples" / "06_replay_a_trace"


def answer(nodes, file, *more):
    words = ["sim", "run", str(HERE / "philly_day.csv"), "--nodes", nodes, "--config", str(HERE / file)]
    done = CliRunner().invoke(cli, [*words, "--estimates", "none", "--restart-cost", "30", "--json", *more])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_more_gpus_shorten_every_wait_and_half_a_quota_lengthens_its_owners(tmp_path):
    now = answer("6x8", "cluster.yaml", "--out", str(tmp_path / "now"))
    more = answer("7x8", "cluster.yaml")
    half = answer("6x8", "half.yaml")
    assert now["quota_violations"] == more["quota_violations"] == half["quota_violations"] == 0
    assert more["avg_wait_s"] < now["avg_wait_s"]
    assert half["queues"]["team-a"]["avg_wait_s"] > now["queues"]["team-a"]["avg_wait_s"]
    assert half["queues"]["team-b"]["avg_wait_s"] < now["queues"]["team-b"]["avg_wait_s"]
    rented = answer("6x8", "rented.yaml")
    assert rented["queues"]["team-a"]["avg_wait_s"] < now["queues"]["team-a"]["avg_wait_s"] * 0.6
    assert rented["peak_nodes"] == 8 and 0 < rented["peak_price_per_hour"] <= 32 and now["cost"] == 0
    assert "ph29998" in (tmp_path / "now" / "waits.csv").read_text()
