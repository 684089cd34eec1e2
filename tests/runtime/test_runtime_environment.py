"""What surrounds user code on a worker: nothing escapes its folder, mistakes are named, output is kept."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmsched import versions
from llmsched.runtime import environment


def pack(folder, **files):
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return f"{folder}/packed.zip"


def test_a_workdir_arrives_with_its_folders(tmp_path):
    uri = pack(tmp_path, **{"pkg/loop.py": "x = 1", "data.csv": "a,b"})
    folder = environment.unpack(uri, tmp_path / "out")
    assert (folder / "pkg" / "loop.py").read_text() == "x = 1"


@pytest.mark.parametrize("name", ["../out.py", "/etc/out.py", "a/../../out.py", "a\\b.py"])
def test_a_name_that_leads_out_of_the_workdir_is_refused(tmp_path, name):
    with pytest.raises(environment.UserError, match="leads out of it"):
        environment.unpack(pack(tmp_path, **{name: "x"}), tmp_path / "out")
    assert not (tmp_path / "out.py").exists()


def test_a_symbolic_link_in_a_workdir_is_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(environment.UserError, match="leads out of it"):
        environment.unpack(f"{tmp_path}/packed.zip", tmp_path / "out")


def test_a_missing_and_a_damaged_workdir_say_what_to_do(tmp_path):
    with pytest.raises(environment.UserError, match="apply the file again"):
        environment.unpack(f"{tmp_path}/none.zip", tmp_path / "out")
    (tmp_path / "bad.zip").write_bytes(b"not an archive")
    with pytest.raises(environment.UserError, match="bad.zip is damaged"):
        environment.unpack(f"{tmp_path}/bad.zip", tmp_path / "out")


def test_an_entry_point_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "entry_of_mine.py").write_text("import not_installed_here\n")
    (tmp_path / "entry_without.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(environment.UserError, match="no module 'nothing_like_it'"):
        environment.load_entry("nothing_like_it:loop", "train.loop")
    with pytest.raises(environment.UserError, match="has nothing called 'loop'"):
        environment.load_entry("entry_without:loop", "train.loop")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        environment.load_entry("entry_of_mine:loop", "train.loop")


def test_a_mistake_is_explained_by_the_last_frame_of_the_users_own_code(tmp_path, monkeypatch):
    (tmp_path / "loop_of_mine.py").write_text("import json\n\ndef loop():\n    json.loads('{')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError) as caught:
        environment.load_entry("loop_of_mine:loop", "train.loop")()
    told = environment.explain(caught.value, tmp_path)
    assert told.startswith("JSONDecodeError: Expecting property name")
    assert told.endswith("(loop_of_mine.py:4, in loop)")
    assert environment.explain(environment.UserError("no such file"), tmp_path) == "no such file"


def test_output_goes_to_the_log_line_by_line_and_to_where_it_went_before(tmp_path, capsys):
    log = environment.LogFile(str(tmp_path), "w/0/1/logs/0.log")
    with environment.output_to(log):
        print("seen")
        print("warned", file=sys.stderr)
        assert (tmp_path / "w/0/1/logs/0.log").read_text() == "seen\nwarned\n"
    print("after")
    assert capsys.readouterr().out == "seen\nafter\n"
    assert (tmp_path / "w/0/1/logs/0.log").read_text() == "seen\nwarned\n"


def test_when_output_ends_the_log_is_whole_in_any_storage_and_no_copy_is_left(store):
    log = environment.LogFile(store.uri, "w/0/1/logs/0.log")
    with environment.output_to(log):
        print("first")
        print("last")
    assert store.read("w/0/1/logs/0.log") == b"first\nlast\n"
    assert log.path.exists() == store.hands_out_originals


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one_and_a_live_ones_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    hold = "from llmsched.runtime import environment; print(environment.scratch('a/0'), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = Path(other.stdout.readline().strip())
        mine = environment.scratch("b/0")
        assert theirs.is_dir() and mine.is_dir()
        other.kill()
        other.wait()
        environment.sweep()
        assert not theirs.exists() and mine.is_dir()
    environment.drop(mine)
    assert list(tmp_path.iterdir()) == []


def test_processes_of_one_machine_share_its_cpus_and_each_has_at_least_one(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [environment.cpu_share(n) for n in (0, 1, 3, 8, 20)] == [8, 8, 2, 1, 1]


def test_threads_that_wait_for_each_other_sleep_as_two_trainings_on_the_same_cpus_were_each_eight_times_slower():
    envs = {**os.environ, **environment.thread_envs(2), "OMP_DISPLAY_ENV": "true"}
    told = subprocess.run([sys.executable, "-c", "import torch"], env=envs, capture_output=True, text=True, check=True)
    assert "OMP_NUM_THREADS = '2'" in told.stderr and "OMP_WAIT_POLICY = 'PASSIVE'" in told.stderr


def test_a_node_of_another_version_is_refused_with_both_and_what_to_do() -> None:
    environment.check_version({"version": versions.own()})
    environment.check_version({})  # of a controller from before orders said theirs
    with pytest.raises(environment.UserError, match=rf"has llmsched {versions.own()} and the controller 9\.1\.0"):
        environment.check_version({"version": "9.1.0"})
