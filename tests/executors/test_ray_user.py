"""Two users: whom Ray may run as, what that user can see, and what the controller does with files in its place."""

import asyncio
import grp
import hashlib
import io
import json
import os
import pwd
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from llmsched.api import logs, results, workdirs
from llmsched.control import model_files
from llmsched.errors import RequestError
from llmsched.executors import ray_user
from llmsched.executors.ray_user import RayUser

EMPTY_ZIP = b"PK\x05\x06" + bytes(18)
EMPTY_ZIP_SHA256 = hashlib.sha256(EMPTY_ZIP).hexdigest()
as_root = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root, to be two users")


@pytest.fixture
def ray():
    """The user that `llmsched up` makes."""
    found = ray_user.choose(ray_user.DEFAULT).user
    assert found is not None
    return found


@pytest.fixture
def closed(seen_by_all):
    """A folder for its owner alone, with a secret in it and something that others may read once they are in."""
    (seen_by_all / "closed" / "python").mkdir(parents=True)
    (seen_by_all / "closed" / "python" / "word").write_text("readable")
    (seen_by_all / "closed" / "token").write_text("canary")
    (seen_by_all / "closed").chmod(0o700)
    return seen_by_all / "closed"


@pytest.fixture
def seen_by_all(ray):
    """A folder that others may pass, which those of pytest are not, with `storage` in it for Ray's user."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "storage").mkdir()
        os.chown(folder / "storage", ray.uid, ray.gid)
        yield folder
    finally:
        shutil.rmtree(folder)


def test_the_own_user_is_single_user_mode_and_says_why():
    assert ray_user.choose(ray_user.own()) == (None, f"Ray runs as {ray_user.own()}, as the controller does")


def test_somebody_who_is_root_or_can_become_root_is_refused():
    somebody = RayUser("somebody", 4242, 4242, (4242,), Path("/nonexistent"))
    ray_user.check(somebody, [Path("/usr")])
    with pytest.raises(RequestError, match="somebody is root by another name"):
        ray_user.check(somebody._replace(uid=0), [])
    with pytest.raises(RequestError, match="could become root: it is in the group (shadow|disk)"):
        mighty = next(one.gr_gid for one in grp.getgrall() if one.gr_name in ("shadow", "disk"))
        ray_user.check(somebody._replace(groups=(4242, mighty)), [])


def test_somebody_who_may_change_what_the_controller_runs_is_refused(tmp_path):
    somebody = RayUser("somebody", 4242, 4242, (4242,), tmp_path)
    ray_user.check(somebody, [tmp_path])
    tmp_path.chmod(0o707)
    with pytest.raises(RequestError, match=f"somebody may change {tmp_path}, which the controller runs") as refused:
        ray_user.check(somebody, [tmp_path])
    assert "go-w" in refused.value.hint


@as_root
@pytest.mark.parametrize("name", ["No Name", "-x", "a" * 40, "../x"])
def test_a_user_who_cannot_be_made_is_refused_by_name(name):
    with pytest.raises(RequestError, match="is no name of a user"):
        ray_user.choose(name)


@as_root
def test_root_itself_stays_without_a_second_user_when_it_is_asked_for():
    assert ray_user.choose("root").user is None


@as_root
def test_somebody_else_cannot_have_ray_run_as_another_user_and_is_told_how_root_can(ray):
    code = "from llmsched.executors import ray_user; print(ray_user.choose(None).why); ray_user.choose('daemon')"
    done = subprocess.run(
        [*ray_user.command(ray), sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/", env={}
    )
    assert f"only root can start Ray as another user, and this is {ray.name}" in done.stdout
    assert "sudo llmsched up" in done.stdout
    assert "RequestError" in done.stderr


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, to take a capability from root")
def test_a_root_that_may_make_no_view_goes_on_with_one_user_and_says_why_unless_it_was_asked_for_two(ray):
    """As in a container without CAP_SYS_ADMIN, whose Python is under /root."""
    if not ray_user.closed(ray, ray_user.code()):
        pytest.skip("this Python can be read by all, so that no view is needed")
    code = "from llmsched.executors import ray_user; print(ray_user.choose(None)); ray_user.choose('llmsched-ray')"
    words = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-P", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "user=None" in done.stdout and "cannot run the Python of this llmsched" in done.stdout
    assert "asked for a view of the file system of its own" in done.stdout
    assert "where every user can read them" in done.stdout
    assert "RequestError" in done.stderr


# --- in its place ---------------------------------------------------------------------------------------------------


@as_root
def test_a_link_in_a_result_leads_the_controller_nowhere(ray, closed, seen_by_all):
    """`ln -s $HOME/token logs/0.log`, then `llmsched logs`: root would have read it out to whoever asked."""
    root = seen_by_all / "storage"
    with ray_user.acting_as(ray):
        (root / "thief/0/1/logs").mkdir(parents=True)
        (root / "thief/0/1/logs/0.log").write_text("hello\n")
        (root / "thief/0/1/logs/1.log").symlink_to(closed / "token")
        (root / "out").symlink_to(closed)
    storage = results.open_storage(str(root), ray)
    assert asyncio.run(_lines(storage)) == ["hello"]
    assert storage.list("thief/0/1/logs") == ["thief/0/1/logs/0.log"]
    assert storage.size("out/token") is None
    for act in (
        lambda: storage.read("thief/0/1/logs/1.log"),
        lambda: storage.read_from("out/token", 0, 9),
        lambda: storage.write("out/new", b""),
        lambda: storage.append("thief/0/1/logs/1.log", b"x"),
    ):
        with pytest.raises(PermissionError):
            act()
    assert (closed / "token").read_text() == "canary"  # root itself is as before


async def _lines(storage):
    return [line.text async for line in logs.read(storage, lambda: [("thief/0", 1)])]


@as_root
def test_what_the_controller_writes_for_work_is_the_works(ray, seen_by_all):
    storage = results.open_storage(str(seen_by_all / "storage"), ray)
    workdirs.keep(storage, EMPTY_ZIP_SHA256, io.BytesIO(EMPTY_ZIP))
    file = seen_by_all / "storage" / "workdirs" / f"{EMPTY_ZIP_SHA256}.zip"
    assert (file.stat().st_uid, file.read_bytes()) == (ray.uid, EMPTY_ZIP)


@as_root
def test_a_model_is_looked_at_as_the_work_would_see_it(ray, closed, seen_by_all):
    """`base_model: /root/...` would have told whether a file is there, and what it holds, to who may not know."""
    (closed / "model").mkdir()
    (closed / "model" / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    model_files.read(str(closed / "model"))
    model_files.read_as(partial(ray_user.acting_as, ray))
    try:
        there, absent = (_why_unknown(closed / name) for name in ("model", "nothing"))
        assert there.replace("model", "nothing") == absent.replace("model", "nothing")
    finally:
        model_files.read_as(nullcontext)


def _why_unknown(path):
    with pytest.raises(model_files.UnknownModel) as unknown:
        model_files.read(str(path))
    return str(unknown.value)


@as_root
def test_acting_as_somebody_is_of_one_thread(ray, closed):
    inside, looked = threading.Event(), threading.Event()
    seen = []

    def other():
        inside.wait(PATIENCE_S)
        seen.append((closed / "token").read_text())
        looked.set()

    threading.Thread(target=other).start()
    with ray_user.acting_as(ray):
        inside.set()
        assert looked.wait(PATIENCE_S)
    assert seen == ["canary"]


@as_root
def test_what_is_made_in_the_place_of_somebody_is_theirs(ray):
    folder = ray_user.folder_of(ray, Path("/a-home-of-this-test"))
    with ray_user.acting_as(ray):
        folder.mkdir()
    try:
        assert folder.stat().st_uid == ray.uid
    finally:
        folder.rmdir()


# --- its view of the file system ------------------------------------------------------------------------------------


def entered(ray, reveal, code):
    """What Python says as `ray`, in a view that also reveals {closed: path}."""
    words = ray_user.command(ray)
    words[-1:-1] = [f"--reveal={folder}:{path}" for folder, path in reveal.items()]
    done = subprocess.run([*words, sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/", env={})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@as_root
def test_of_a_closed_folder_it_sees_what_was_revealed_and_cannot_write_there(ray, closed):
    code = f"""
import json, os
def how(act, *words):
    try:
        return act(*words)
    except OSError as error:
        return error.strerror
print(json.dumps([
    os.getuid(), os.getgroups(),
    os.listdir({str(closed)!r}), open({str(closed / "python" / "word")!r}).read(),
    how(os.mkdir, {str(closed / "python" / "new")!r}), how(os.mkdir, {str(closed / "new")!r}),
    how(os.setuid, 0),
    [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff", "NoNewPrivs"))],
]))
"""
    seen = entered(ray, {closed: closed / "python"}, code)
    none = "0" * 16
    assert seen[:4] == [ray.uid, [ray.gid], ["python"], "readable"]
    assert seen[4:7] == ["Read-only file system", "Permission denied", "Operation not permitted"]
    assert seen[7] == [none, none, "1"]
    assert sorted(one.name for one in closed.iterdir()) == ["python", "token"]  # nothing has changed out here
    assert closed.stat().st_mode & 0o777 == 0o700


def test_what_is_revealed_does_not_depend_on_where_somebody_stands(tmp_path, monkeypatch):
    before = ray_user.code()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as `python -m` does with the folder it runs in
    assert ray_user.code() == before


@as_root
def test_the_pipe_and_the_variables_of_the_bridge_are_closed_to_other_processes_of_its_user(ray, tmp_path):
    """Without an exec after the change of user: with one, a process that waits for it could take the pipe first."""
    bridge = subprocess.Popen(
        ray_user.command(ray, module="llmsched.executors.bridge.main"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={"CANARY": "canary"},
    )
    try:
        assert b"hello" in bridge.stdout.readline().lower()  # it speaks, so it runs what it is to run
        assert pwd.getpwuid(int(_status(bridge.pid, "Uid"))).pw_name == ray.name
        code = f"""
import json, os, signal
def how(act, *words):
    try:
        return repr(act(*words))
    except OSError as error:
        return error.strerror
place = "/proc/{bridge.pid}/"
print(json.dumps([how(open, place + "environ"), how(os.listdir, place + "fd"), how(open, place + "fd/0"),
                  how(open, place + "mem"), how(os.readlink, place + "cwd")]))
"""
        assert entered(ray, {}, code) == ["Permission denied"] * 5
    finally:
        bridge.send_signal(signal.SIGKILL)
        bridge.wait()
        bridge.stdin.close()
        bridge.stdout.close()


def _status(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
