"""A command beside a member: real processes, and every way in which one ends."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from waiting import PATIENCE_S, has_ended, wait_until

from llmsched.runtime import execute, redaction


def run(*argv, timeout_s=PATIENCE_S, stop=None, envs=(), folder="."):
    said = list(execute.run(argv, str(folder), {**os.environ, **dict(envs)}, timeout_s, stop or threading.Event()))
    text = {name: "".join(item[1] for item in said if item[0] == name) for name in ("stdout", "stderr")}
    assert [item[0] for item in said].count("end") == 1
    return text["stdout"], text["stderr"], said[-1][1], said[-1][2]


def python(code, **more):
    return run(sys.executable, "-c", code, **more)


def test_both_streams_and_the_code_come_back(tmp_path):
    code = "import os, sys; print(os.getcwd(), os.environ['RANK']); print('grr', file=sys.stderr); sys.exit(3)"
    assert python(code, folder=tmp_path, envs={"RANK": "1"}) == (f"{tmp_path} 1\n", "grr\n", "", 3)


def test_no_shell_reads_the_words():
    assert run("echo", "$HOME", "*", "; false")[0] == "$HOME * ; false\n"


def test_what_cannot_be_run_ends_as_in_a_shell(tmp_path):
    script = tmp_path / "plain"
    script.write_text("echo no")
    assert run("no-such-program")[1:] == ("cannot run 'no-such-program': No such file or directory\n", "", 127)
    assert run(str(script))[3] == 126
    assert python("import os; os.kill(os.getpid(), 15)")[3] == 128 + 15


def test_it_hears_of_ctrl_c_though_ray_blocks_that_in_all_that_it_starts():
    told = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('goes on')"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        out, err, _, code = python(told)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (out, err.splitlines()[-1], code) == ("", "KeyboardInterrupt", 128 + signal.SIGINT)


def test_one_that_takes_too_long_is_ended_with_its_children():
    code = "import subprocess; p = subprocess.Popen(['sleep', '99']); print(p.pid, flush=True); p.wait()"
    out, _, why, code = python(code, timeout_s=1)
    assert (why, code) == ("it was ended after 1 s", None)
    wait_until(lambda: has_ended(int(out)), 20, "the end of its child")  # a signal takes a moment to arrive


def test_one_that_writes_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(execute, "OUTPUT_AT_MOST", 1 << 20)
    out, _, why, code = run("yes")
    assert (why, code) == ("it was ended: it wrote more than 1 MiB", None)
    assert len(out) <= (1 << 20) + execute.CHUNK


def test_it_ends_when_nobody_listens():
    stop = threading.Event()
    said = execute.run(["sh", "-c", "echo here; sleep 99"], ".", os.environ, 60, stop)
    assert next(said) == ("stdout", "here\n")
    stop.set()
    assert list(said) == [("end", "it was ended, because nobody listens any more", None)]


def test_a_child_that_keeps_the_output_open_does_not_hold_it(monkeypatch):
    monkeypatch.setattr(execute, "_LAST_WORDS_WITHIN_S", 0.1)
    out, _, why, code = run("sh", "-c", "sleep 99 & echo done")
    assert (out, why, code) == ("done\n", "", 0)


def test_one_that_closes_its_output_is_still_waited_for():
    assert python("import os, time; os.close(1); os.close(2); time.sleep(0.5); os._exit(4)")[3] == 4


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_secret_values_are_hidden(monkeypatch, stream):
    monkeypatch.setattr(redaction, "_values", ("canary-77",))
    out, err, _, code = python(f"import sys; print('it is canary-77', file=sys.{stream})")
    assert (out + err, code) == ("it is ***\n", 0)


def test_text_that_is_cut_within_a_character_is_whole_again(monkeypatch):
    monkeypatch.setattr(execute, "CHUNK", 3)
    assert python("print('ä€😀' * 3)", envs={"PYTHONIOENCODING": "utf-8"})[0] == "ä€😀" * 3 + "\n"


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="sessions are seen in /proc")


def alive():
    return [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]


@on_linux
def test_what_a_command_started_in_sessions_of_its_own_ends_before_its_end_is_told():
    quiet = "</dev/null >/dev/null 2>&1"
    away = f"setsid sleep 98.31 {quiet} & (setsid setsid sleep 97.31 {quiet} & echo $!)"
    with subprocess.Popen(["sleep", "99"], start_new_session=True) as another:
        out, err, why, code = run("bash", "-c", f"{away}; echo $!; exit 3")
        assert (why, code) == ("", 3) and another.poll() is None
        another.kill()
    assert len(out.split()) == 2 and all(has_ended(int(pid)) for pid in out.split())
    assert not {"sleep 98.31", "sleep 97.31"} & {*alive()}


@on_linux
def test_what_is_told_to_stay_stays(tmp_path):
    begun = tmp_path / "begun"  # until it is in a session of its own it ends with the command
    stay = f"env -u LLMSCHED_COMMAND setsid -f sh -c 'touch {begun}; exec sleep 96.31' >/dev/null 2>&1"
    out, err, _, code = run("bash", "-c", f"{stay}; until [ -e {begun} ]; do sleep 0.01; done")

    def sleeping() -> list[psutil.Process]:
        return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "96.31"]]

    (left,) = wait_until(sleeping)  # it is still sh for a moment
    left.kill()
    assert (out, err, code) == ("", "", 0)
