"""`ray start` without the commands of Ray's program that it does not need: what is left out, and what must be there."""

from __future__ import annotations

import subprocess
import sys

from llmsched.ray_start import RAY
from llmsched.runtime import private_ray


def test_it_starts_nodes_and_does_not_hold_serve_and_pandas_for_as_long_as_they_live() -> None:
    said = subprocess.run(
        [sys.executable, "-X", "importtime", *RAY, "start", "--help"], capture_output=True, text=True, check=True
    )
    assert "--dashboard-agent-listen-port" in said.stdout  # it is Ray's own command
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "ray.scripts.scripts" in imported
    assert not imported & {"ray.serve", "pandas", "fastapi", "aiohttp"}


def test_the_commands_that_we_give_it_are_there() -> None:
    for command in ("drain-node", "start"):
        subprocess.run([sys.executable, *RAY, command, "--help"], capture_output=True, check=True)


def test_its_process_is_known_as_one_of_rays() -> None:
    assert private_ray.is_rays(" ".join([sys.executable, *RAY, "start", "--block"]))
