"""exec through the API, the client and the command line, on a fake cluster: who may, what it says, how it ends."""

import json

import httpx
import pytest
from live import Live, command_line
from waiting import wait_until

from llmsched.errors import RequestError
from llmsched.executors.fake import Script

TASK = {"name": "work", "kind": "task", "workers": 2, "task": {"run": ["true"]}}
SERVE = {"name": "desk", "kind": "serve", "replicas": 2, "serve": {"app": "desk:Desk"}}


@pytest.fixture(scope="module")
def running(controller: Live):
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    client = controller.client()
    client.apply([TASK, SERVE])
    wait_until(lambda: all(client.status(name).phase == "running" for name in ("work", "desk")))
    return controller


@pytest.fixture
def llmsched(running: Live, monkeypatch):
    return command_line(running, monkeypatch)


def test_the_sdk_streams_what_it_says_and_how_it_ended(running: Live) -> None:
    said = [line.model_dump(exclude_defaults=True) for line in running.client().exec("work", ["echo", "a", "b"])]
    assert said == [{"stream": "stdout", "text": "a b\n"}, {"stream": "end", "exit_code": 0}]


def test_a_replica_is_chosen_by_its_number(running: Live) -> None:
    assert list(running.client().exec("desk", ["exit", "0"], gang=1))[-1].exit_code == 0
    with pytest.raises(RequestError, match="desk has no gang 7"):
        list(running.client().exec("desk", ["exit", "0"], gang=7))


def test_a_rank_that_is_not_there_is_named_with_those_that_are(running: Live) -> None:
    with pytest.raises(RequestError, match="work/0 has ranks 0 to 1, no rank 2") as refused:
        list(running.client().exec("work", ["echo"], rank=2))
    assert (refused.value.code, refused.value.http_status) == ("unknown_rank", 404)


def test_a_deployment_that_is_placed_by_itself_is_a_rank_of_its_replica(running: Live) -> None:
    """Its log was that of rank 1, and for commands there was "only rank 0"."""
    client = running.client()
    parts = {"app": "desk:app", "deployments": {"Large": {"replicas": 2}}}
    client.apply([{**SERVE, "name": "wide", "replicas": 1, "serve": parts}])
    wait_until(lambda: client.status("wide").phase == "running")
    assert list(client.exec("wide", ["exit", "0"], rank=2))[-1].exit_code == 0
    with pytest.raises(RequestError, match="wide/0 has ranks 0 to 2, no rank 3"):
        list(client.exec("wide", ["echo"], rank=3))


def test_what_does_not_run_is_said_with_what_to_do(running: Live) -> None:
    client = running.client()
    client.apply([{**TASK, "name": "later", "after": ["work"]}])
    with pytest.raises(RequestError, match="later is waiting") as refused:
        list(client.exec("later", ["echo"]))
    assert (refused.value.code, refused.value.http_status) == ("not_running", 409)
    assert "llmsched why later" in refused.value.hint
    with pytest.raises(RequestError, match='no workload "nobody"'):
        list(client.exec("nobody", ["echo"]))


def test_for_others_there_is_nothing_to_run_it_beside(running: Live) -> None:
    for user, role, status in (("bob", "submitter", 404), ("eve", "viewer", 403)):
        with pytest.raises(RequestError) as refused:
            list(running.client(running.token_of(user, role)).exec("work", ["echo", "mine"]))
        assert refused.value.http_status == status


def test_whoever_hangs_up_ends_it(running: Live) -> None:
    cluster = running.executor.cluster
    lines = running.client().exec("work", ["sleep", "99"])
    assert next(lines).text == "zzz\n"
    assert cluster.commands
    lines.close()
    wait_until(lambda: not cluster.commands)


@pytest.mark.parametrize(
    "body", [{"command": []}, {"command": "ls -l"}, {"command": ["a\0b"]}, {"command": ["a"], "timeout_s": 0}, {}]
)
def test_words_that_are_none_are_refused(running: Live, body: dict) -> None:
    headers = {"authorization": f"Bearer {running.token}"}
    assert (
        httpx.post(f"{running.url}/api/v1/workloads/{TASK['name']}/exec", json=body, headers=headers).status_code == 422
    )


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (2, 102), (3, 103), (5, 105), (6, 6), (127, 127)])
def test_the_exit_code_is_the_commands_but_for_our_own_four(llmsched, code: int, told: int) -> None:
    done = llmsched("exec", "work", "--", "exit", str(code))
    assert done.exit_code == told
    assert (f"exited with {code}; told as {told}" in done.stderr) is (code != told)


def test_the_command_line_keeps_the_streams_apart(llmsched) -> None:
    done = llmsched("exec", "work", "--rank", "1", "--", "echo", "-n", "--json")
    assert (done.stdout, done.stderr, done.exit_code) == ("-n --json\n", "", 0)
    done = llmsched("exec", "work", "--", "nope")
    assert (done.stdout, done.exit_code) == ("", 127)
    assert "cannot run 'nope'" in done.stderr


def test_json_is_the_lines_of_the_api(llmsched) -> None:
    done = llmsched("exec", "work", "--json", "--", "echo", "hi")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"stream": "stdout", "text": "hi\n", "exit_code": None},
        {"stream": "end", "text": "", "exit_code": 0},
    ]


def test_refusals_have_our_exit_codes(llmsched, running: Live) -> None:
    assert llmsched("exec", "work", "--rank", "9", "--", "echo").exit_code == 3
    assert llmsched("exec", "work").exit_code == 2
    running.executor.cluster.kill("llms/desk/1/1")
    assert llmsched("exec", "desk", "--gang", "99", "--", "echo").exit_code == 3


def test_the_story_tells_who_ran_what_before_it_ran_in_bounded_words_and_without_keys(running: Live) -> None:
    client = running.client()
    key = "hf_" + "a1b2c3d4" * 4
    list(client.exec("work", ["echo", f"token={key}", "two\nlines", "x" * 500], rank=1))
    told = [event for event in client.events(follow=False) if event.kind == "CommandBegun"][-1]
    assert (told.workload, told.gang) == ("work", "work/0")
    assert "runs a command beside rank 1: echo 'token=***' 'two lines' xxx" in told.text
    assert told.text.endswith("...") and len(told.text) < 300 and key not in told.model_dump_json()
    assert told.text in [line.text for line in client.story("work").lines]
