"""The gateway on real Ray Serve: what only real handles and real processes can show."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llmsched.executors import local_ray


@pytest.mark.ray
def test_on_serve_it_streams_in_order_frees_slots_and_survives_a_replicas_and_its_own_death():
    home = Path(tempfile.mkdtemp(prefix="gw"))  # short: Ray puts sockets below it
    runtime = local_ray.prepare(home)
    (runtime / local_ray.TOKEN).write_text("0" * 64)
    env = {**os.environ, **local_ray.environment(home)}
    driver = Path(__file__).with_name("gateway_on_ray.py")
    try:
        done = subprocess.run(
            [sys.executable, str(driver), str(home / "r"), str(home / "seen.json")],
            env=env,
            capture_output=True,
            text=True,
            timeout=560,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        seen = json.loads((home / "seen.json").read_text())
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(runtime, ignore_errors=True)
    print(seen)
    assert seen["unknown_key"] == 401
    assert seen["in_order"]
    assert seen["leaving_frees"]
    assert seen["far_in_order"] and seen["far_leaving_frees"]  # from another machine, through Ray
    assert seen["moved_to"] == ["1", "1"]  # the held request was asked again elsewhere
    assert seen["after_kill"] == [200] * 20
    assert (seen["without_table"], seen["with_table"]) == (503, 200)
    assert (seen["without_serve"], seen["with_another"]) == (503, 200)
