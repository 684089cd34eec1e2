"""The local Ray without starting one: what it reads, refuses, and ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import has_ended, wait_until

from llmsched.errors import ClusterError, RequestError, SpecError
from llmsched.executors import local_ray, ports
from llmsched.executors.local_ray import PretendNode


def test_nodes_are_counts_of_gpus_with_or_without_a_flavor():
    assert local_ray.parse_nodes("2x4:A100,1x8") == [PretendNode(4, "A100")] * 2 + [PretendNode(8, None)]


@pytest.mark.parametrize("text", ["", "4", "0x4:A100", "2x:A100", "2x4:", "ax4:A100", "2x4:A100,", "1x1:a b", "99x1"])
def test_nodes_that_cannot_be_read_are_refused_with_an_example(text):
    with pytest.raises(SpecError):
        local_ray.parse_nodes(text)


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RequestError, match="in use"):
            local_ray.start(tmp_path, dashboard_port=taken.getsockname()[1])
    assert local_ray.read(tmp_path) is None


def test_a_ray_that_dies_at_its_start_says_so_with_its_last_words_and_leaves_nothing(tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(ClusterError, match="head ended while starting:\nthe disk is full"):
        local_ray.start(tmp_path / "home")
    assert local_ray.read(tmp_path / "home") is None


def test_a_ray_that_takes_too_long_is_ended_and_says_where_its_words_are(tmp_path, monkeypatch):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    slow.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(slow))
    with pytest.raises(ClusterError, match="did not come up in time") as raised:
        local_ray.start(tmp_path / "home", timeout_s=0.0)
    assert "try again" in raised.value.hint and str(tmp_path / "home" / "logs") in raised.value.hint
    assert local_ray.read(tmp_path / "home") is None


def test_of_a_traceback_of_ray_what_was_raised_is_said_and_where_the_rest_is(tmp_path, monkeypatch):
    broken = tmp_path / "python"
    said = "Traceback (most recent call last):\n  File one, line 3\n    ^^^\nException: no head was found"
    broken.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(ClusterError, match="head ended while starting:\nException: no head was found") as raised:
        local_ray.start(tmp_path / "home")
    assert str(tmp_path / "home" / "logs" / "ray-head.log") in raised.value.hint


def test_a_node_waits_for_a_head_that_is_slow_as_long_as_we_do(tmp_path, monkeypatch):
    """On a busy machine the head's port was open long before its raylet was known, and the nodes gave up."""
    ray = tmp_path / "python"
    ray.write_text(
        """#!/bin/sh
case "$*" in
    *--head*) port=${*#*--port=}; exec python3 -m http.server --bind 127.0.0.1 "${port%% *}" ;;
    *) echo "looks $RAY_NUM_REDIS_GET_RETRIES times"; exit 1 ;;
esac
"""
    )
    ray.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(ray))
    with pytest.raises(ClusterError, match="node-1 ended while starting:\nlooks 1000 times"):
        local_ray.start(tmp_path / "home", [PretendNode(1, "A100")])


@pytest.mark.parametrize(
    "words",
    [
        "Failed to bind to address 127.0.0.1:34567",  # a connection took it between being chosen and Ray's binding it
        "Exception: The current node timed out during startup.",  # Ray gives its raylet 30 s, however busy the machine
    ],
)
def test_a_ray_that_next_time_may_come_up_is_started_anew_on_other_ports(tmp_path, monkeypatch, words):
    unlucky = tmp_path / "python"
    unlucky.write_text(f'#!/bin/sh\necho "$@" >> "$SEEN"\necho {words} >&2\nexit 1\n')
    unlucky.chmod(0o700)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setattr(sys, "executable", str(unlucky))
    with pytest.raises(ClusterError, match=words):
        local_ray.start(tmp_path / "home", pass_on=["SEEN"])
    tried = (tmp_path / "seen").read_text().splitlines()
    assert len(tried) == len(set(tried)) == 3
    with pytest.raises(ClusterError, match=words):
        local_ray.start(tmp_path / "home", port=ports.free_ports(1)[0], pass_on=["SEEN"])


def test_free_ports_are_not_those_that_connections_get():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = ports.free_ports(50)
    assert len(set(chosen)) == 50 and all(20_000 <= port < first for port in chosen)
    with socket.create_server(("127.0.0.1", chosen[0])):
        assert not ports.is_free(chosen[0]) and not ports.is_free(chosen[0], "127.0.0.1")


def test_stopping_ends_what_is_recorded_or_marked_and_nobody_else(tmp_path):
    def sleeper(**env):
        return subprocess.Popen(["sleep", "60"], env={**os.environ, **env}, start_new_session=True)

    recorded, marked, other = sleeper(), sleeper(**{local_ray.MARKER: "m1"}), sleeper(**{local_ray.MARKER: "m2"})
    reused = sleeper()  # a pid that another process has now: its start time differs
    try:
        at = psutil.Process(recorded.pid).create_time()
        processes = [
            {"name": "head", "pid": recorded.pid, "started": at},
            {"name": "node-1", "pid": reused.pid, "started": at - 1000},
        ]
        about = {"address": "127.0.0.2:1", "dashboard_url": "", "temp_dir": str(tmp_path / "t"), "marker": "m1"}
        (tmp_path / "ray.json").write_text(json.dumps({**about, "processes": processes}))
        assert local_ray.read(tmp_path).is_alive()
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / local_ray.TOKEN).write_text("of this cluster only")
        assert local_ray.stop(tmp_path) == 2
        assert not (tmp_path / "t").exists()
        assert has_ended(recorded.pid) and has_ended(marked.pid)
        assert (other.poll(), reused.poll()) == (None, None)
        assert local_ray.read(tmp_path) is None
        assert local_ray.stop(tmp_path) == 0
    finally:
        for one in (recorded, marked, other, reused):
            one.kill()
            one.wait()


def test_a_head_whose_gcs_was_just_killed_is_not_alive_though_ray_start_has_not_seen_it_yet(tmp_path):
    """`llmsched up` at once after a kill took such a Ray for one that runs, started none, and nobody else does."""
    script = f"for part in {' '.join(local_ray.HEAD_PARTS)}; do $0/$part 60 & done; exec sleep 60"
    for part in local_ray.HEAD_PARTS:
        (tmp_path / part).symlink_to("/bin/sleep")
    head = subprocess.Popen(["sh", "-c", script, str(tmp_path)], start_new_session=True)
    try:
        below = wait_until(lambda: len(found := psutil.Process(head.pid).children()) == 2 and found)
        wait_until(lambda: {one.name() for one in below} == {*local_ray.HEAD_PARTS})
        recorded = local_ray.Process("head", head.pid, psutil.Process(head.pid).create_time(), node="ab12")
        cluster = local_ray.LocalRay("127.0.0.2:1", "", str(tmp_path), "m1", [recorded])
        assert cluster.is_alive()
        below[0].kill()
        wait_until(lambda: has_ended(below[0].pid))
        assert head.poll() is None and not cluster.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_an_agent_whose_raylet_is_gone_and_whose_marker_is_overwritten_ends_as_well(tmp_path):
    """Ray's agents write their title over their environment; a raylet killed on a busy machine left six behind."""
    script = "sleep 60 & echo $!; exec sleep 60"
    bare = {name: value for name, value in os.environ.items() if name != local_ray.MARKER}
    raylet = subprocess.Popen(["sh", "-c", script], env=bare, stdout=subprocess.PIPE, start_new_session=True)
    agent = psutil.Process(int(raylet.stdout.readline()))
    try:
        head = {"name": "head", "pid": raylet.pid, "started": psutil.Process(raylet.pid).create_time()}
        about = {"address": "127.0.0.2:1", "dashboard_url": "", "temp_dir": str(tmp_path / "t"), "marker": "m1"}
        (tmp_path / "ray.json").write_text(json.dumps({**about, "processes": [head]}))
        raylet.kill()
        raylet.wait()
        assert agent.is_running()
        assert local_ray.stop(tmp_path) == 1
        assert has_ended(agent.pid)
    finally:
        raylet.kill()
        raylet.stdout.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def test_a_token_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    local_ray._write_token(tmp_path / "ray-token")
    token = (tmp_path / "ray-token").read_text()
    local_ray._write_token(tmp_path / "ray-token")
    assert (tmp_path / "ray-token").read_text() == token
    assert len(token) == 64
    assert (tmp_path / "ray-token").stat().st_mode & 0o777 == 0o600


def test_a_pretend_nodes_memory_is_of_the_machine_whatever_is_free_now() -> None:
    """A machine that was busy while its nodes started left them 2 GB of 24, and an endpoint waited for ever."""
    options = local_ray._node_options(0, local_ray.PretendNode(2, "A100"))
    memory = next(int(each.partition("=")[2]) for each in options if each.startswith("--memory="))
    limits = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
    told = [int(file.read_text()) for file in limits if file.is_file() and file.read_text().strip().isdigit()]
    assert memory == int(min([psutil.virtual_memory().total, *told]) * local_ray.MEMORY_SHARE)
