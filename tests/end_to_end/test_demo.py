"""The demo, shortened, as a user starts it: real Ray, real models, every moment of the story, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray


def test_the_demo_tells_its_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "LLMSCHED_CACHE": str(tmp_path / "cache")}
    environment.pop("LLMSCHED_HOME", None)

    done = subprocess.run(
        [sys.executable, "-m", "llmsched.cli.main", "demo", "--short", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    measured = json.loads(done.stdout)
    assert measured["first_token_s"] > 0
    assert measured["why"] == "nodes"  # the second fine-tune waited, and `why` said for what
    assert 0.3 < measured["accuracy_before"] < 0.7  # an untrained head guesses
    assert measured["classified"] == 2
    assert set(measured["answers"]) == {"assistant", "assistant:support-tone"}
    assert all(measured["answers"].values())
    for shown in ("llmsched plan", "llmsched why support-tone", "llmsched status sentiment", "endpoint"):
        assert shown in done.stderr
    assert processes_of(tmp_path) == []
    assert [each.name for each in tmp_path.iterdir()] in (["cache"], [])  # Ray's own user, if any, has one of its own


def processes_of(folder: Path) -> list[str]:
    """Processes, other than this one, that carry `folder` in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(folder) in value for value in process.environ().values()):
                found.append(" ".join(process.cmdline())[:120] or process.name())
        except psutil.Error:
            continue
    return found
