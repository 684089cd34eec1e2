"""`llmsched cluster`: what is wrong with a file is said before a machine is touched; then the words to ray and ssh.

`ray` and `ssh` are small programs here that write down what they are given; test_ray_up.py drives the real ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llmsched.cli.main import cli
from llmsched.executors import launcher

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
PROGRAM = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if "get-head-ip" in sys.argv:
    print("a word of Ray's\\n10.0.0.10") if os.environ.get("HEAD", "1") == "1" else sys.exit("Head node not found!")
if "status" in sys.argv[-1]:
    print("WORKLOADS OF THE HEAD")
sys.exit(int(os.environ.get(os.path.basename(sys.argv[0]).upper() + "_CODE", "0")))
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with ray, ssh and rsync, a key and a token; `words()` is what they were given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ray", "ssh", "rsync"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    for path, text in ((".ssh/id_ed25519", "key"), (".ssh/llmsched-ray", "key"), (".ray/auth_token", "token")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setattr(launcher, "_RAY", [str(programs / "ray")])
    monkeypatch.chdir(CLUSTER.parent)

    def words() -> list[list[str]]:
        seen = tmp_path / "seen"
        return [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []

    return words


def changed(tmp_path: Path, name: str = "onprem.yaml", *changes: tuple[str, str]) -> str:
    """One of our files with its CHANGE words taken out, and `changes` made."""
    text = (CLUSTER / name).read_text().replace("# CHANGE", "# mine")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def one_user(tmp_path: Path) -> str:
    """cluster/onprem.yaml without a login for the controller."""
    text = (CLUSTER / "onprem.yaml").read_text()
    begin = text.index("metadata:\n")
    return changed(tmp_path, "onprem.yaml", (text[begin : text.index("\n\n", begin)].replace("# CHANGE", "# mine"), ""))


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["cluster", *words])


def test_up_starts_ray_and_then_the_controller_on_its_head(there: Any, tmp_path: Path) -> None:
    file = changed(tmp_path)
    done = run("up", "--yes", file, "--storage", "s3://bucket/a b", "--config", "~/llmsched/cluster/llmsched.yaml")
    assert done.exit_code == 0, done.output
    up, head, rsync, _, install, _, ssh = there()
    assert up == ["ray", "up", "--yes", file]
    assert head == ["ray", "get-head-ip", file]
    assert rsync[0] == "rsync" and rsync[-2:] == ["./", "admin@10.0.0.10:/opt/llmsched/"]
    assert {"--chown=root:root", "--chmod=go-w,go+rX", "--rsync-path=sudo -n -H rsync"} <= set(rsync)
    assert install[-1].startswith("sudo -n -H sh -c 'cd /opt/llmsched; umask 022; ")
    assert ssh[0] == "ssh" and ssh[-2] == "admin@10.0.0.10"
    assert ssh[ssh.index("-i") + 1] == str(tmp_path / ".ssh/id_ed25519")
    assert ssh[-1] == (
        "sudo -n -H env RAY_AUTH_MODE=token /opt/llmsched/.venv/bin/llmsched up --address "
        "\"$(/opt/llmsched/.venv/bin/python -c 'import ray; print(ray.util.get_node_ip_address())'):6379\" "
        "--ray-user llmsched-ray --storage 's3://bucket/a b' --config ~/llmsched/cluster/llmsched.yaml"
    )
    assert f"llmsched cluster status {file}" in done.output
    assert "single-user" not in done.output


def test_without_a_login_of_its_own_the_controller_runs_as_ray_does_and_that_is_said(
    there: Any, tmp_path: Path
) -> None:
    done = run("up", "--yes", one_user(tmp_path))
    assert done.exit_code == 0, done.output
    assert "single-user mode, tokens are labels" in done.output and "cluster/onprem.yaml" in done.output
    *_, ssh = there()
    assert ssh[-2] == "llmsched-ray@10.0.0.10"
    assert ssh[-1].startswith("RAY_AUTH_MODE=token ~/llmsched/.venv/bin/llmsched up --address ")
    assert "--ray-user" not in ssh[-1]


def test_a_head_that_the_code_cannot_be_put_on_gets_no_controller(
    there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSYNC_CODE", "12")
    done = run("up", "--yes", changed(tmp_path))
    assert done.exit_code == 4 and "could not be put into /opt/llmsched on the head" in done.output
    assert "admin must be able to log in there, and to use sudo" in done.output
    assert there()[-1][0] == "rsync"


def test_the_address_that_the_file_gives_to_ray_is_the_one_to_join(tmp_path: Path) -> None:
    local = launcher.read(CLUSTER / "local.yaml")
    assert "--address 127.0.0.2:6379" in launcher.start_command(local)


def test_status_is_the_heads_and_so_is_its_exit_code(
    there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = changed(tmp_path)
    assert run("status", file, "--json").exit_code == 0
    assert "WORKLOADS OF THE HEAD" in capfd.readouterr().out
    assert there()[-1][-1] == "sudo -n -H env COLUMNS=80 /opt/llmsched/.venv/bin/llmsched status --json"
    assert run("status", one_user(tmp_path), "--json").exit_code == 0
    assert there()[-1][-1] == "COLUMNS=80 ~/llmsched/.venv/bin/llmsched status --json"
    file = changed(tmp_path)
    run("status", file, "my model; reboot")
    assert there()[-1][-1].endswith("llmsched status 'my model; reboot'")
    monkeypatch.setenv("SSH_CODE", "3")
    assert run("status", file).exit_code == 3
    monkeypatch.setenv("SSH_CODE", "255")
    done = run("status", file)
    assert done.exit_code == 4 and "did not reach the head" in done.output
    monkeypatch.setenv("HEAD", "0")
    done = run("status", file)
    assert done.exit_code == 4 and "Head node not found" in done.output and "cluster up" in done.output


def test_down_ends_the_work_first_and_ray_whatever_happens(
    there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = changed(tmp_path)
    monkeypatch.setenv("SSH_CODE", "4")
    done = run("down", "--yes", file)
    assert done.exit_code == 0 and "Ray is taken down all the same" in done.output
    _, ssh, down = there()
    assert ssh[-1].endswith("/opt/llmsched/.venv/bin/llmsched down") and down == ["ray", "down", "--yes", file]


def test_nothing_is_done_without_a_yes(there: Any, tmp_path: Path) -> None:
    for words in (("up", changed(tmp_path)), ("down", changed(tmp_path))):
        done = CliRunner().invoke(cli, ["cluster", *words], input="n\n")
        assert done.exit_code == 1 and "Aborted" in done.output
    assert there() == []


def test_a_launcher_that_fails_is_a_cluster_that_did_not_do_as_asked(
    there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_CODE", "1")
    done = run("up", "--yes", changed(tmp_path))
    assert done.exit_code == 4 and "ray up ended with 1" in done.output
    assert len(there()) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("RAY_AUTH_MODE=token ", "")], "Ray would answer without a token"),
        ([("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")], "the dashboard would listen on 0.0.0.0"),
        ([("--port=6379", "--port=6379 --node-ip-address=0.0.0.0")], "it would listen for everybody"),
        ([("ray start --head", "ray start")], "no command starts Ray's head"),
        ([("id_ed25519", "id_nobody")], "id_nobody is not there"),
        ([("_key: ~/.ssh/llmsched-ray", "_key: ~/.ssh/id_nobody")], "id_nobody is not there"),
        ([("  ssh_user: llmsched-ray ", "  nobody: 1 ")], "nobody is named to log in as"),
        ([("login: admin", "login: llmsched-ray")], "llmsched-ray is whom Ray runs as, and so all work"),
        ([("_key: ~/.ssh/llmsched-ray", "_key: ~/.ssh/id_ed25519")], "would let work in as the operator"),
        ([("  ssh_private_key: ~/.ssh/llmsched-ray\n", "")], "would let work in as the operator"),
        ([("login: admin, ", "")], "names no login with its key"),
        ([("{login: admin, key: ~/.ssh/id_ed25519}", "admin")], "names no login with its key"),
        ([("~/.ray/auth_token\nrsync", "~/.ray/another\nrsync")], "~/.ray/another is not there"),
        ([("  ~/.ray/auth_token: ~/.ray/auth_token\n", "")], "no node gets a token"),
        ([("idle_timeout", "docker: {run_options: [-p 0.0.0.0:80:80]}\nidle_timeout")], "let everybody in"),
    ],
)
def test_what_would_go_wrong_or_stand_open_is_said_and_nothing_touched(
    there: Any, tmp_path: Path, changes: list[tuple[str, str]], said: str
) -> None:
    done = run("up", "--yes", changed(tmp_path, "onprem.yaml", *changes))
    assert done.exit_code == 2 and said in done.output, done.output
    assert f"{tmp_path}/onprem.yaml:" in done.output
    assert there() == []


def test_our_files_are_refused_until_they_are_changed_and_fine_then(
    there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onprem.yaml", "aws.yaml"):
        done = run("up", "--check", str(CLUSTER / name))
        assert done.exit_code == 2 and "is still to be changed" in done.output
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    mine = [
        ("llmsched.pem", "id_ed25519"),
        ("subnet-0000", "subnet-1a2b"),
        ("sg-0000", "sg-1a2b"),
        ("0" * 12, "1" * 12),
    ]
    file = changed(tmp_path, "aws.yaml", *mine)
    for one in (changed(tmp_path), file, changed(tmp_path, "local.yaml")):
        done = run("up", "--check", one)
        assert done.exit_code == 0, done.output
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert "no AWS credentials" in run("up", "--check", file).output
    assert there() == []


def test_a_token_or_key_that_others_can_read_or_that_is_empty_is_refused(there: Any, tmp_path: Path) -> None:
    for path in (".ray/auth_token", ".ssh/id_ed25519", ".ssh/llmsched-ray"):
        (tmp_path / path).chmod(0o644)
        said = run("up", "--check", changed(tmp_path)).output
        assert "open to others" in said and path in said
        (tmp_path / path).chmod(0o600)
    (tmp_path / ".ray/auth_token").write_text("\n")
    assert "auth_token is empty" in run("up", "--check", changed(tmp_path)).output


def test_the_ids_of_our_template_are_nobodys_even_without_their_comment(there: Any, tmp_path: Path) -> None:
    said = run("up", "--check", changed(tmp_path, "aws.yaml")).output
    for each in ("SubnetIds: [subnet-0000]", "SecurityGroupIds: [sg-0000]", "000000000000"):
        assert each in said


def test_the_cluster_file_that_will_be_in_force_there_is_read_here_first(there: Any, tmp_path: Path) -> None:
    wrong = tmp_path / "checkout" / "cluster"
    wrong.mkdir(parents=True)
    (wrong / "llmsched.yaml").write_text("queus: []\n")
    file = changed(tmp_path, "onprem.yaml", ("~/llmsched: . ", f"~/llmsched: {tmp_path}/checkout "))
    done = run("up", "--check", file, "--config", "~/llmsched/cluster/llmsched.yaml")
    assert done.exit_code == 2 and "queus" in done.output
    done = run("up", "--check", file, "--config", "~/llmsched/cluster/none.yaml")
    assert done.exit_code == 2 and "cannot read" in done.output
    assert run("up", "--check", changed(tmp_path), "--config", "~/llmsched/cluster/llmsched.yaml").exit_code == 0
    assert there() == []


def test_what_is_no_file_of_ray_up_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1]))
    for file, said in (("broken.yaml", "no YAML"), ("list.yaml", "no cluster file"), ("none.yaml", "cannot read")):
        done = run("up", "--check", str(tmp_path / file))
        assert done.exit_code == 2 and said in done.output
