"""By hand through API, client and command line, on a fake cluster whose programs, ports and files are real."""

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from contextlib import closing, contextmanager

import pytest
from click.testing import CliRunner
from live import Live
from waiting import PATIENCE_S, wait_until
from websockets.sync.client import connect

from llmsched.cli.main import cli
from llmsched.client import by_hand
from llmsched.errors import LlmschedError, RequestError
from llmsched.executors.fake import Script
from llmsched.spec.by_hand import ByHandRequest

TASK = {"name": "desk", "kind": "task", "task": {"run": ["true"]}}


@pytest.fixture(scope="module")
def running(controller: Live):
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    client = controller.client()
    client.apply(TASK)
    wait_until(lambda: client.status("desk").phase == "running")
    return controller


@pytest.fixture
def there(running: Live, tmp_path, monkeypatch):
    """The working folder of the worker."""
    monkeypatch.setenv("LLMSCHED_ADDRESS", running.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", running.token)
    folder = tmp_path / "there"
    folder.mkdir()
    running.executor.cluster.folder = str(folder)
    yield folder
    wait_until(lambda: not running.executor.cluster.commands)  # nothing outlives who asked for it


def llmsched(*words, **more):
    return CliRunner().invoke(cli, words, **more)


def command(*words):
    return [sys.executable, "-m", "llmsched.cli.main", *words]


class Terminal:
    """One that a person might sit at, with a command in front."""

    def __init__(self, words, rows=30, columns=100):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.shown = ""

    def type(self, text):
        os.write(self.ours, text.encode())

    def until(self, text):
        while text not in self.shown:
            assert select.select([self.ours], [], [], 60)[0], self.shown
            self.shown += os.read(self.ours, 65536).decode()

    def resize(self, rows, columns):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)


def test_a_shell_at_a_terminal_has_its_size_its_ctrl_c_and_hands_its_exit_code_on(there) -> None:
    at = Terminal(command("exec", "-it", "desk", "--", "sh", "-c", "echo up; stty size; exec sh"))
    at.until("30 100")
    at.type("trap 'echo caught' INT; pwd; read x\n")
    at.until(str(there))
    at.type("\x03")
    at.until("caught\r\n")
    at.resize(40, 90)
    at.type("until [ \"$(stty size)\" = '40 90' ]; do sleep 0.1; done; echo is $((6*7)); exit 7\n")
    at.until("is 42")
    assert at.process.wait(PATIENCE_S) == 7
    assert "-icanon" not in subprocess.run(["stty", "-a"], stdin=at.ours, capture_output=True, text=True).stdout


def test_input_goes_in_and_both_streams_come_out_apart(there) -> None:
    code = "import sys; data = sys.stdin.buffer.read(); print(len(data), sum(data)); print('grr', file=sys.stderr)"
    data = bytes(range(256)) * 8192  # more than all the windows
    done = subprocess.run(
        command("exec", "-i", "desk", "--", sys.executable, "-c", code + "; sys.exit(9)"),
        input=data,
        capture_output=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"%d %d\n" % (len(data), sum(data)), b"grr\n", 9)
    done = subprocess.run(command("exec", "-i", "desk", "--", "nope"), stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stderr) == (127, b"cannot run 'nope': No such file or directory\n")


def test_options_that_would_have_no_effect_are_refused(there) -> None:
    assert "--timeout is for a command without" in llmsched("exec", "-i", "--timeout", "5", "desk", "--", "true").stderr
    assert "--json is for a command without" in llmsched("exec", "-i", "--json", "desk", "--", "true").stderr
    assert "-t needs a terminal here" in llmsched("exec", "-it", "desk", "--", "true").stderr


def test_whoever_hangs_up_ends_the_program(running: Live, there) -> None:
    ask = ByHandRequest(does="terminal", command=["sh", "-c", "echo $$; exec sleep 600"])
    with running.client().by_hand("desk", ask) as beside:
        channel = beside.channels.open(0)
        channel.resize(24, 80)
        pid = int(channel.read())
        os.kill(pid, 0)
    wait_until(lambda: not running.executor.cluster.commands)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@contextmanager
def shouting():
    """A server that answers in capitals, each connection until its client has said all."""

    def serve(connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())

    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def say_all(connection, data):
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


@contextmanager
def forwarded(running: Live, port: int, said=None):
    listening = by_hand.listener(0)
    said = [] if said is None else said
    with listening, running.client().by_hand("desk", ByHandRequest(does="forward", port=port)) as beside:
        thread = threading.Thread(target=by_hand.forward, args=(beside, listening, said.append))
        thread.start()
        yield listening.getsockname()[1]
        listening.close()
        thread.join()


def test_several_connections_reach_the_port_at_once_and_a_slow_one_holds_up_no_other(running: Live, there) -> None:
    with shouting() as there_port, forwarded(running, there_port) as here:
        slow = socket.create_connection(("127.0.0.1", here))
        filling = threading.Thread(target=slow.sendall, args=(b"x" * (4 << 20),), daemon=True)
        filling.start()  # and nobody reads what is answered
        for word in (b"one", b"two" * 100_000):
            with socket.create_connection(("127.0.0.1", here)) as quick:
                sending = threading.Thread(target=say_all, args=(quick, word))
                sending.start()
                assert b"".join(iter(lambda: quick.recv(65536), b"")) == word.upper()
                sending.join()
        with closing(slow):
            left = 4 << 20
            while left:
                left -= len(slow.recv(65536))
        filling.join()


def test_a_port_where_nobody_answers_and_one_that_is_taken_are_said(running: Live, there) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        refused = llmsched("port-forward", "desk", f"{number}:80")
        assert refused.exit_code == 3 and f"port {number} of this machine cannot be used" in refused.stderr
        assert re.search(r"(\d+) is free: write \1:80\.", refused.stderr)
    with forwarded(running, number, said) as here, socket.create_connection(("127.0.0.1", here)) as one:
        assert one.recv(10) == b""
        wait_until(lambda: said)
    assert said == [f"nothing answers on port {number} where it runs: Connection refused"]
    assert llmsched("port-forward", "desk", "http").exit_code == 2


def test_files_and_folders_go_both_ways_and_end_at_the_working_folder(there, tmp_path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "rows.bin").write_bytes(os.urandom(1 << 20))
    (tmp_path / "data" / "run.sh").write_text("true")
    (tmp_path / "data" / "run.sh").chmod(0o755)
    assert llmsched("cp", str(tmp_path / "data"), "desk:.").exit_code == 0
    assert (there / "data" / "run.sh").stat().st_mode & 0o777 == 0o755
    back = llmsched("cp", "desk:data", str(tmp_path / "back"))
    assert back.exit_code == 0, back.output
    assert (tmp_path / "back/deep/rows.bin").read_bytes() == (tmp_path / "data/deep/rows.bin").read_bytes()
    assert "back/run.sh is there already" in llmsched("cp", "desk:data/run.sh", str(tmp_path / "back")).stderr
    assert llmsched("cp", str(tmp_path / "data"), "desk:.").exit_code == 3

    (there / "out").symlink_to("/etc")
    for path in ("../there2", "/etc/passwd", "out/passwd"):
        refused = llmsched("cp", f"desk:{path}", str(tmp_path / "stolen"))
        assert refused.exit_code == 3 and "is not below the working folder" in refused.stderr, refused.output
        assert llmsched("cp", str(tmp_path / "data" / "run.sh"), f"desk:{path}").exit_code == 3
    assert llmsched("cp", "desk:nothing", str(tmp_path / "x")).exit_code == 3
    assert llmsched("cp", "a", "b").exit_code == 2
    assert not list(tmp_path.rglob(".llmsched-cp-*"))


def test_who_may_not_change_it_does_nothing_by_hand_and_the_story_tells_who_did(running: Live, there) -> None:
    ask = ByHandRequest(does="forward", port=80)
    for user, role, status in (("bob", "submitter", 404), ("eve", "viewer", 403)):
        with pytest.raises(RequestError) as refused:
            running.client(running.token_of(user, role)).by_hand("desk", ask)
        assert refused.value.http_status == status
    with pytest.raises(LlmschedError):
        running.client("nonsense").by_hand("desk", ask)
    with pytest.raises(RequestError, match="desk/0 has only rank 0, no rank 5"):
        running.client().by_hand("desk", ByHandRequest(does="forward", port=80, rank=5))
    with running.client().by_hand("desk", ask):
        told = [line.text for line in running.client().story("desk").lines]
        assert any("runs a command beside rank 0: port-forward 80" in line for line in told)


def test_frames_that_are_none_are_hung_up_on(running: Live, there) -> None:
    url = running.url.replace("http", "ws") + "/api/v1/workloads/desk/by-hand"
    headers = {"authorization": f"Bearer {running.token}"}
    for first in ("{}", "no", '{"does": "forward"}', '{"does": "forward", "port": 1, "path": "x"}'):
        with connect(url, additional_headers=headers, proxy=None) as wire:
            wire.send(first)
            assert '"exit_code":2' in wire.recv()
    flood = b"\x00\x00\x00\x00\x00" + b"x" * 32768
    for frames in ([b"x"], [flood] * 20):
        with connect(url, additional_headers=headers, proxy=None) as wire:
            wire.send('{"does": "attach", "command": ["sleep", "600"]}')
            assert '"begun":true' in wire.recv()
            for frame in frames:
                wire.send(frame)
            last = [message for message in wire if isinstance(message, str)]
            assert len(last) == 1
