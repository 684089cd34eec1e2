"""Whoever may submit may do no more: work runs as a user of its own, and reads nothing of the controller's."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from pathlib import Path

import httpx
import pytest
from ray_home import OPERATORS, SharedHome
from waiting import wait_until

from llmsched.executors import endpoint_proxy, ray_user

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run Ray as a user of its own"),
]
WORK = Path(__file__).parent / "two_users"
SPEC = """\
name: thief
kind: task
workdir: two_users
resources: {{cpus: 0.5}}
task: {{run: [python, thief.py, "{home}", "{controller}", "{bridge}", "{canary}"]}}
---
name: honest
kind: train
workdir: two_users
resources: {{accelerators: "A100:1", cpus: 0.5}}
train: {{loop: "thief:loop"}}
---
name: echo
kind: serve
workdir: two_users
resources: {{cpus: 0.5}}
serve: {{app: "thief:Echo"}}
"""


def test_work_reads_nothing_of_the_controllers_and_does_all_that_it_should(shared: SharedHome) -> None:
    home = shared
    assert f"runs as {ray_user.DEFAULT}, who can read nothing of the controller's" in home.said
    assert "HF_HOME names what llmsched-ray cannot reach" in home.said
    assert home.work is not None
    shutil.copytree(WORK, home.work / "two_users")
    processes = {"controller": home.controller_pid(), "bridge": home.bridge_pid()}
    home.llmsched("secret", "set", "HF_TOKEN", given="a secret\n")

    home.apply(SPEC.format(home=home.folder, canary=OPERATORS, **processes), "--wait")
    log = home.llmsched("logs", "thief")

    stolen, told = (json.loads(line) for line in log.splitlines()[:2])
    tried = stolen["tried"]
    denied = {"Permission denied", "Operation not permitted"}
    assert {what: came for what, came in tried.items() if came not in denied} == {}
    assert len(tried) == 18
    assert told == {"shared": "with all work", "told": []}
    assert (home.folder / "token").read_text().strip() not in log
    uid = pwd.getpwnam(ray_user.DEFAULT).pw_uid
    assert stolen["uid"] == uid

    assert f"trains as {uid}" in home.llmsched("logs", "honest")
    with home.client() as client:
        artifact = client.status("honest").artifact
        assert artifact is not None and Path(artifact.removeprefix("file://"), "made").read_text() == "made"
        assert (client.health().isolation.mode, client.health().isolation.ray_user) == ("two-users", ray_user.DEFAULT)
        endpoint = client.health().urls["endpoint"]
    asked = {"json": {"name": "ann"}, "headers": home.bearer(), "timeout": 30}
    wait_until(lambda: httpx.post(f"{endpoint}/v1/apps/echo", **asked).status_code == 200, 60, "the app answers")
    asked["headers"] = {"authorization": f"Bearer {(home.folder / 'token').read_text().strip()}"}
    proxy = endpoint_proxy.running(home.folder)
    home.llmsched("restart")
    assert httpx.post(f"{endpoint}/v1/apps/echo", **asked).json() == {"said": "ann", "uid": uid}
    assert proxy is not None and endpoint_proxy.running(home.folder) == proxy, "no restart cuts streams"
    assert "Ray runs as llmsched-ray, who can read nothing in" in home.llmsched("doctor")
