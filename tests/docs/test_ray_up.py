"""`ray up cluster/local.yaml`, over real ssh, and `llmsched up --address` on top: in namespaces of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ray_up.sh")
NEEDS = [
    each
    for each in ("sshd", "rsync", "unshare", "ip", "ss")
    if not shutil.which(each, path="/usr/sbin:/usr/bin:/sbin:/bin")
]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        os.geteuid() != 0 or bool(NEEDS), reason=f"needs root, for namespaces, and {NEEDS or 'nothing else'}"
    ),
]


def test_ray_up_starts_a_closed_cluster_that_llmsched_joins_and_ray_down_ends() -> None:
    namespaces = ["unshare", "--pid", "--net", "--mount", "--fork", "--kill-child", "--mount-proc"]

    def follow() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*namespaces, "bash", str(SCRIPT)], capture_output=True, text=True, timeout=560)

    done = follow()
    if "== join" not in done.stdout:  # `ray start` gives a head half a minute, which a busy machine may not keep
        done = follow()

    said = done.stdout
    assert done.returncode == 0, said[-3000:] + done.stderr[-3000:]
    assert "\nrefused\n" in said.split("== without the token")[1].split("== token file")[0]
    assert "== token file 600" in said
    assert "1 nodes" in said
    assert "hello: succeeded" in said
    assert "hello from the cluster" in said
    assert "== left: 0" in said
