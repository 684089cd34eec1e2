"""The API over a real controller: what goes in, what comes out, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live
from waiting import PATIENCE_S

from llmsched.executors.fake import Script
from llmsched.spec import http_models


def task(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "task": {"run": ["true"]}, **more}


def gpus(count: int) -> dict[str, Any]:
    return {"resources": {"accelerators": [f"A100:{count}"]}}


@pytest.fixture
def http(controller: Live) -> httpx.Client:
    headers = {"authorization": f"Bearer {controller.token}"}
    return httpx.Client(base_url=f"{controller.url}/api/v1", headers=headers, timeout=PATIENCE_S)


def test_apply_answers_what_was_committed_and_the_same_again_is_unchanged(http: httpx.Client) -> None:
    for outcome in ("created", "unchanged"):
        answer = http.post("/apply", json={"specs": [task("once")]})
        assert answer.status_code == 200
        (applied,) = http_models.AppliedList.model_validate(answer.json()).applied
        assert (applied.id, applied.kind, applied.outcome) == ("once", "task", outcome)


def test_a_changed_spec_says_what_changed(http: httpx.Client) -> None:
    http.post("/apply", json={"specs": [task("edited", priority=10, **gpus(1), workers=1)]})
    answer = http.post("/apply", json={"specs": [task("edited", priority=20, **gpus(1), workers=1)]})
    (applied,) = http_models.AppliedList.model_validate(answer.json()).applied
    assert applied.outcome == "changed"
    assert any("priority" in line and "10" in line and "20" in line for line in applied.diff)


def test_the_same_key_gives_the_same_answer_and_another_body_is_refused(http: httpx.Client) -> None:
    key = {"idempotency-key": "abc"}
    first = http.post("/apply", json={"specs": [task("keyed")], "again": True}, headers=key)
    second = http.post("/apply", json={"specs": [task("keyed")], "again": True}, headers=key)
    assert first.json() == second.json()
    assert [one["id"] for one in http.get("/workloads").json()["workloads"] if one["name"] == "keyed"] == ["keyed"]
    other = http.post("/apply", json={"specs": [task("other")], "again": True}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency")


def test_a_file_is_taken_whole_or_not_at_all(http: httpx.Client) -> None:
    answer = http.post("/apply", json={"specs": [task("good"), task("greedy", **gpus(64))]})
    assert answer.status_code == 409
    assert http.get("/workloads/good").status_code == 404


@pytest.mark.parametrize(
    ("spec", "status", "code"),
    [
        pytest.param(task("x", num_worker=2), 422, "unknown_key", id="unknown key"),
        pytest.param(task("x", priority="high"), 422, "invalid_spec", id="wrong type"),
        pytest.param({"name": "x"}, 422, "missing_key", id="no kind"),
        pytest.param(task("x", **gpus(5)), 409, "impossible", id="more GPUs than any node has"),
        pytest.param(task("x", resources={"accelerators": ["H100:1"]}), 409, "impossible", id="no such accelerator"),
        pytest.param(task("x", queue="nowhere"), 409, "unknown_queue", id="unknown queue"),
        pytest.param(task("../x"), 422, "invalid_spec", id="odd name"),
    ],
)
def test_what_is_wrong_is_refused_with_its_code_and_a_way_out(
    http: httpx.Client, spec: dict[str, Any], status: int, code: str
) -> None:
    answer = http.post("/apply", json={"specs": [spec]})
    body = http_models.ErrorBody.model_validate(answer.json())
    assert (answer.status_code, body.code) == (status, code)
    assert body.message
    assert "Traceback" not in answer.text


def test_plan_changes_nothing_and_says_where_it_would_start(fresh: Live) -> None:
    client = fresh.client()
    before = client.health().seq
    maybe, never = client.plan([task("maybe", workers="1..2", **gpus(1)), task("never", **gpus(64))])
    assert (maybe.starts_now, maybe.size, maybe.at_max.gpus) == (True, 2, 2.0)
    assert maybe.placement[0].name.startswith("node-")
    assert (never.outcome, never.reason and never.reason.code) == ("refused", "impossible")
    assert client.workloads().workloads == []
    assert list(client.events(before, follow=False)) == []


def test_an_unknown_name_is_404_with_the_nearest(http: httpx.Client) -> None:
    http.post("/apply", json={"specs": [task("sentiment")]})
    for part in ("", "/why", "/story", "/logs"):
        answer = http.get(f"/workloads/sentimnet{part}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_workload")
        assert "sentiment" in answer.json()["hint"]
    assert http.post("/workloads/sentimnet/cancel").status_code == 404
    assert http.post("/workloads/sentimnet/scale", json={"size": 1}).status_code == 404


def test_a_life_is_seen_from_every_side(controller: Live, http: httpx.Client) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.05, steps=2, metrics={"eval.loss": 0.5})
    http.post("/apply", json={"specs": [task("short", **gpus(1))]})
    view = controller.client().wait("short", timeout_s=PATIENCE_S)
    assert (view.phase, view.metrics) == ("succeeded", {"eval.loss": 0.5})
    assert view.progress["step"] == 2
    story = http_models.StoryView.model_validate(http.get("/workloads/short/story").json())
    assert [line.kind for line in story.lines][:3] == ["Submitted", "Launch", "Bound"]
    assert story.lines[-1].text.startswith("succeeded")
    assert "eval.loss 0.5" in story.lines[-1].text


def test_a_list_can_leave_out_what_ended_long_ago(fresh: Live) -> None:
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None if order.workload == "lives" else 0.01)
    client = fresh.client()
    for name in ("lives", "first", "second"):
        client.apply([task(name)])
    for name in ("first", "second"):
        client.wait(name, timeout_s=PATIENCE_S)
    assert [one.id for one in client.workloads(ended=1).workloads] == ["second", "lives"]
    assert [one.id for one in client.workloads(ended=0).workloads] == ["lives"]
    assert len(client.workloads().workloads) == 3
    client.apply([task("waits", after=["lives"]), task("too", after=["lives"])])
    listed = client.workloads(ended=0, waiting=1)
    assert [one.id for one in listed.workloads] == ["too", "lives"]
    assert listed.counts == {"waiting": 2, "running": 1, "succeeded": 2}


def test_why_names_the_reason_while_it_waits_and_the_place_while_it_runs(fresh: Live) -> None:
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    client = fresh.client()
    client.apply([task("holds", workers=2, priority=90, **gpus(4)), task("waits", priority=10, **gpus(4))])
    fresh.hear("Bound", "holds")
    held, waits = client.why("holds"), client.why("waits")
    assert (held.phase, held.reason) == ("running", None)
    assert "node-1" in held.text and "node-2" in held.text
    assert waits.phase == "waiting"
    assert waits.reason is not None
    assert waits.reason.code in ("nodes", "quota", "order", "fragmentation")
    assert waits.reason.message == waits.text
    nodes = [(node.name, node.free.gpus, node.gangs) for node in client.nodes().nodes]
    assert nodes == [("node-1", 0.0, ["holds/0"]), ("node-2", 0.0, ["holds/0"])]
    (queue,) = client.queues().queues
    assert (queue.name, queue.gpus_used, queue.waiting, queue.active) == ("default", 8.0, 1, 1)
    for name in ("waits", "holds"):
        client.cancel(name)
        assert client.wait(name, timeout_s=PATIENCE_S).phase == "cancelled"
    assert [node.free.gpus for node in client.nodes().nodes] == [4.0, 4.0]


def test_a_serve_workload_counts_its_replicas(fresh: Live) -> None:
    client = fresh.client()
    serve = {"model": {"id": "web", "source": "hf://some/model"}}
    client.apply([{"name": "web", "kind": "serve", "replicas": "1..3", "serve": serve, **gpus(1)}])
    assert client.wait("web", timeout_s=PATIENCE_S).size == 1
    assert client.scale("web", 3).wanted == 3
    fresh.hear("Bound", "web/2")
    view = client.status("web")
    assert (view.phase, view.size, view.min_size, view.max_size, view.gpus) == ("running", 3, 1, 3, 3.0)
    assert [gang.id for gang in view.gangs] == ["web/0", "web/1", "web/2"]
    client.cancel("web")
    ended = client.wait("web", timeout_s=PATIENCE_S)
    assert (ended.phase, ended.gpus) == ("cancelled", 0.0)


def zipped(**files: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


def put_workdir(http: httpx.Client, content: bytes, name: str | None = None) -> httpx.Response:
    name = name or hashlib.sha256(content).hexdigest()
    return http.put(f"/workdirs/{name}", content=content, headers={"content-type": "application/zip"})


def test_a_workdir_is_kept_under_the_name_of_its_content(controller: Live, http: httpx.Client) -> None:
    content = zipped(**{"main.py": "print(1)"})
    name = hashlib.sha256(content).hexdigest()
    assert http.get(f"/workdirs/{name}").json()["code"] == "unknown_workdir"
    assert put_workdir(http, content).json() == {"sha256": name, "size_bytes": len(content), "known": False}
    assert put_workdir(http, content).json()["known"] is True
    assert http.get(f"/workdirs/{name}").status_code == 200
    assert (controller.home / "storage" / "workdirs" / f"{name}.zip").read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no zip", id="no zip"),
        pytest.param(zipped(**{"../escape.py": "x"}), id="leaves the folder"),
        pytest.param(zipped(**{"/etc/passwd": "x"}), id="absolute"),
        pytest.param(zipped(**{"a/../../b": "x"}), id="up again"),
        pytest.param(zipped(**{"a\\..\\b": "x"}), id="backslash"),
    ],
)
def test_a_workdir_that_could_leave_its_folder_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = put_workdir(http, content)
    assert (answer.status_code, answer.json()["code"]) == (422, "workdir")


def damaged(at: int, format_: str, value: int) -> bytes:
    """A zip of one file, with another value in the list of what it holds."""
    made = bytearray(zipped(a="hello" * 100))
    struct.pack_into(format_, made, made.find(b"PK\x01\x02") + at, value)
    return bytes(made)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(zipped(**{"a": "1", "a/b": "2"}), "both a file and a folder", id="file and folder"),
        pytest.param(zipped(**{"a/b": "1", "a": "2"}), "both a file and a folder", id="folder and file"),
        pytest.param(zipped(**{"x" * 300: "1"}), "no disk takes", id="long name"),
        pytest.param(zipped(**{"/".join(["dir"] * 400): "1"}), "no disk takes", id="deep"),
        pytest.param(damaged(8, "<H", 1), "cannot be unpacked", id="encrypted"),
        pytest.param(damaged(10, "<H", 99), "cannot be unpacked", id="packed in another way"),
        pytest.param(damaged(42, "<I", 0xFFFFFFF0), "cannot be unpacked", id="elsewhere"),
    ],
)
def test_a_workdir_that_no_worker_could_unpack_is_refused_when_it_comes(
    http: httpx.Client, content: bytes, said: str
) -> None:
    answer = put_workdir(http, content)
    assert (answer.status_code, answer.json()["code"]) == (422, "workdir"), answer.text
    assert said in answer.json()["message"] and answer.json()["hint"]


def test_a_workdir_with_a_link_in_it_is_refused(http: httpx.Client) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert put_workdir(http, packed.getvalue()).json()["code"] == "workdir"


def test_a_workdir_that_is_not_what_its_name_says_is_refused(http: httpx.Client) -> None:
    assert put_workdir(http, zipped(a="b"), "0" * 64).json()["code"] == "workdir"


def write_log(controller: Live, key: str, text: str) -> Path:
    file = controller.home / "storage" / key
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(text)
    return file


def lines(answer: httpx.Response) -> list[tuple[int, str]]:
    found = [http_models.LogLine.model_validate_json(line) for line in answer.text.split("\n") if line]
    return [(line.rank, line.text) for line in found if not line.note]


def test_logs_are_read_from_storage_after_the_end(controller: Live, http: httpx.Client) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, steps=1)
    http.post("/apply", json={"specs": [task("logged", workers=2)]})
    controller.client().wait("logged", timeout_s=PATIENCE_S)
    assert lines(http.get("/workloads/logged/logs")) == []
    write_log(controller, "logged/0/1/logs/0.log", "one\ntwo\u2028still two\n10%\r100%\nlast without end")
    for odd in ("logged/0/1/logs/²", "logged/²/logs/0", "logged/0/²/logs/0", "logged/0/1/logs/caf\udce9"):
        write_log(controller, f"{odd}.log", "of nobody\n")  # work names files as it likes
    write_log(controller, "logged/0/1/logs/1.log", "other\n")
    both = [(0, "one"), (0, "two\\u2028still two"), (0, "100%"), (0, "last without end"), (1, "other")]
    assert lines(http.get("/workloads/logged/logs")) == both
    assert lines(http.get("/workloads/logged/logs", params={"rank": 1})) == [(1, "other")]
    assert lines(http.get("/workloads/logged/logs", params={"tail": 1})) == [(0, "last without end"), (1, "other")]
    assert lines(http.get("/workloads/logged/logs", params={"follow": True})) == both
    assert lines(http.get("/workloads/logged/logs", params={"attempt": 2})) == []


def note(answer: httpx.Response) -> str:
    (found,) = [json.loads(line) for line in answer.text.split("\n") if line]
    assert found["note"]
    return str(found["text"])


def test_an_attempt_that_has_written_nothing_names_the_one_before(controller: Live, http: httpx.Client) -> None:
    """Before, a replica that was lost had "no log" as soon as the next one began, and its last words were not found."""

    def lost_once(order: Any) -> Script:
        return Script(runs_for_s=0.01, outcome="failed" if order.attempt == 1 else "succeeded", event="interruption")

    controller.executor.cluster.script = lost_once
    http.post("/apply", json={"specs": [task("again")]})
    controller.client().wait("again", timeout_s=PATIENCE_S)
    told = note(http.get("/workloads/again/logs"))
    assert told == "attempt 2 has written no log; what an earlier one wrote: --attempt 1."


def test_where_there_is_no_log_it_is_said_why(controller: Live, http: httpx.Client) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, steps=1)
    http.post("/apply", json={"specs": [task("silent", workers=2)]})
    controller.client().wait("silent", timeout_s=PATIENCE_S)

    def told(**params: int) -> str:
        return note(http.get("/workloads/silent/logs", params=params))

    assert told() == "no log has been written."
    assert told(rank=1) == "no log of rank 1 has been written."
    assert told(attempt=9) == "attempt 9 has not been: the newest is 1."
    assert told(gang=3) == "silent has no gang 3: it has had 1, numbered from 0."


def test_logs_of_a_replica_that_left_the_state_are_there_by_its_number(controller: Live, http: httpx.Client) -> None:
    http.post("/apply", json={"specs": [{"name": "desk", "kind": "serve", "serve": {"app": "desk:Desk"}}]})
    controller.controller.state.workloads["desk"].next_index = 4  # replicas 0 to 3 have been, and are put aside
    write_log(controller, "desk/2/1/logs/0.log", "older\n")
    write_log(controller, "desk/2/10/logs/0.log", "newest\n")
    assert lines(http.get("/workloads/desk/logs", params={"gang": 2})) == [(0, "newest")]
    assert lines(http.get("/workloads/desk/logs", params={"gang": 2, "attempt": 1})) == [(0, "older")]
    said = note(http.get("/workloads/desk/logs", params={"gang": 3}))
    assert said == "replica 3 has gone, and no log of it is in the storage."


def test_a_log_that_a_workload_replaced_is_not_followed_and_that_is_said(
    controller: Live, http: httpx.Client, tmp_path: Path
) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, steps=1)
    http.post("/apply", json={"specs": [task("sly")]})
    controller.client().wait("sly", timeout_s=PATIENCE_S)
    logs = controller.home / "storage" / "sly" / "0" / "1" / "logs"
    logs.mkdir(parents=True)
    secret = tmp_path / "secrets" / "0.log"
    secret.parent.mkdir()
    secret.write_text("canary-55\n")

    def shown() -> str:
        answer = http.get("/workloads/sly/logs")
        assert answer.status_code == 200 and "canary-55" not in answer.text
        return answer.text

    (logs / "0.log").symlink_to(secret)
    assert "is not shown" in shown()
    (logs / "0.log").unlink()
    os.mkfifo(logs / "0.log")  # whoever opens it waits for a writer
    assert "no log has been written" in shown() or "is not shown" in shown()
    (logs / "0.log").unlink()
    logs.rmdir()
    logs.symlink_to(secret.parent)
    shown()


def test_no_terminal_obeys_a_line_of_a_log(controller: Live, http: httpx.Client) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, steps=1)
    http.post("/apply", json={"specs": [task("loud")]})
    controller.client().wait("loud", timeout_s=PATIENCE_S)
    write_log(controller, "loud/0/1/logs/0.log", "\x1b]0;owned\x07\x1b[31mred\u202e\n")
    (line,) = [one.text for one in controller.client().logs("loud")]
    assert line == "\\x1b]0;owned\\x07red\\u202e"


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("PUT", "/secrets/a-b", {"value": "x"}, 'letters, digits and "_"'),
        ("DELETE", "/secrets/a-b", None, 'letters, digits and "_"'),
        ("POST", "/workloads/anything/scale", {"size": "many"}, "size"),
        ("POST", "/workloads/anything/exec", {"command": ["a\x00b"]}, "command"),
        ("GET", "/workdirs/zz", None, "sha256"),
        ("GET", "/events?after=-1", None, "after"),
        ("POST", "/shutdown", {"stop_everything": 3}, "stop_everything"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_words_with_a_hint(
    http: httpx.Client, method: str, path: str, body: Any, said: str
) -> None:
    http.post("/apply", json={"specs": [task("anything")]})
    answer = http.request(method, path, json=body)
    error = http_models.ErrorBody.model_validate(answer.json())
    assert (answer.status_code, error.exit_code) == (422, 2), answer.text
    assert said in error.message + error.where and error.hint
    assert "[A-Za-z" not in error.message and "^" not in error.message  # patterns are for machines


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/workloads/anything/scale", '{"size": "\\ud800"}'),
        ("/reservations", '{"reservation": {"name": "\\ud800", "start": "2030-01-01T00:00:00Z", "duration": "1h"}}'),
        ("/apply", '{"specs": [{"name": "\\ud800", "kind": "task"}]}'),
    ],
)
def test_the_hint_of_what_is_no_text_fits_wherever_it_stood(http: httpx.Client, path: str, body: str) -> None:
    http.post("/apply", json={"specs": [task("anything")]})
    answer = http.post(path, content=body, headers={"content-type": "application/json"}).json()
    assert answer["code"] == "invalid_text" and "workdir" not in answer["hint"]


def test_following_a_log_shows_lines_as_they_come_and_ends_with_the_workload(
    controller: Live, http: httpx.Client
) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    http.post("/apply", json={"specs": [task("followed")]})
    write_log(controller, "followed/0/1/logs/0.log", "first\nhal")
    with http.stream("GET", "/workloads/followed/logs", params={"follow": True}) as answer:
        seen = (json.loads(line)["text"] for line in answer.iter_lines())
        assert next(seen) == "first"
        write_log(controller, "followed/0/1/logs/0.log", "f\n")
        assert next(seen) == "half"
        http.post("/workloads/followed/cancel")
        assert list(seen) == []


def events(answer: httpx.Response) -> list[http_models.EventView]:
    return [
        http_models.EventView.model_validate_json(line[5:]) for line in answer.iter_lines() if line.startswith("data:")
    ]


def test_events_come_in_order_can_be_resumed_and_hold_no_spec(http: httpx.Client) -> None:
    http.post("/apply", json={"specs": [task("told", envs={"HIDDEN": "canary-value"})]})
    with http.stream("GET", "/events", params={"follow": False}) as answer:
        whole = events(answer)
    numbers = [event.seq for event in whole]
    assert numbers == sorted(set(numbers))
    assert any(event.kind == "Submitted" and event.workload == "told" for event in whole)
    assert not any("canary-value" in event.model_dump_json() for event in whole)
    half = numbers[len(numbers) // 2]
    with http.stream("GET", "/events", params={"follow": False}, headers={"last-event-id": str(half)}) as answer:
        again = [event.seq for event in events(answer)]  # and perhaps what has happened meanwhile
    assert [number for number in again if number <= numbers[-1]] == [number for number in numbers if number > half]


def test_a_follower_hears_of_what_happens_after_it_came(controller: Live, http: httpx.Client) -> None:
    after = http.get("/health").json()["seq"]
    heard: list[http_models.EventView] = []
    done = threading.Event()

    def listen() -> None:
        for event in controller.client().events(after):
            heard.append(event)
            if event.workload == "heard":
                done.set()
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    http.post("/apply", json={"specs": [task("heard")]})
    assert done.wait(PATIENCE_S)
    assert heard[0].seq > after


def test_metrics_are_prometheus_text(http: httpx.Client) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'llmsched_gpus{flavor="A100",use="total"} 8' in answer.text
    for line in answer.text.splitlines():
        assert line.startswith("# TYPE ") or float(line.rpartition(" ")[2]) >= 0


def test_a_configuration_is_put_in_force_and_shown(controller: Live, http: httpx.Client) -> None:
    config = {"queues": [{"name": "default"}, {"name": "lab", "quota": {"A100": {"nominal": 4}}}]}
    answer = http.put("/config", json={"config": config})
    assert answer.status_code == 200
    view = http_models.ConfigView.model_validate(http.get("/config").json())
    assert [queue["name"] for queue in view.configuration["queues"]] == ["default", "lab"]
    assert view.version >= 1
    wrong = http.put("/config", json={"config": {"queus": []}})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "unknown_key")


def test_the_api_describes_itself(http: httpx.Client, controller: Live) -> None:
    described = httpx.get(f"{controller.url}/openapi.json", headers=dict(http.headers), timeout=PATIENCE_S).json()
    assert "/api/v1/workloads/{name}/why" in described["paths"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/api/v1/workloads?phases=running", 'Did you mean "phase"?'),
        ("/api/v1/events?follow=false&workload=x", "It has after, follow"),
        ("/api/v1/nodes?x=1", "It has none."),
        ("/api/v1/workloads/nobody/logs?%ED%A0%80=1", "It has attempt"),
    ],
)
def test_a_query_parameter_that_a_route_does_not_have_is_refused_and_never_left_out(
    controller: Live, path: str, hint: str
) -> None:
    answer = httpx.get(controller.url + path, headers={"authorization": f"Bearer {controller.token}"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_parameter")
    assert hint in answer.json()["hint"]
