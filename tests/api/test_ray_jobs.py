"""Ray's Jobs API, asked by Ray's own command line and client, against a real controller on a fake cluster."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live
from waiting import PATIENCE_S, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from llmsched.api import workdirs
from llmsched.executors.fake import Script
from llmsched.runtime.storage import Storage

RAY = Path(sys.executable).with_name("ray")


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def jobs(controller: Live) -> Live:
    scripts = {"ends": Script(runs_for_s=0.05), "fails": Script(runs_for_s=0.05, outcome="failed", message="code 3")}
    controller.executor.cluster.script = lambda order: scripts.get(order.workload, Script(runs_for_s=None))
    queues = [{"name": "default"}, {"name": "lab"}, {"name": "far", "roles": {"submitter": ["ann"]}}]
    put = httpx.put(
        f"{controller.url}/api/v1/config", json={"config": {"queues": queues}}, headers=bearer(controller.token)
    )
    assert put.status_code == 200
    return controller


def ask(live: Live, method: str, path: str, token: str = "", **more: Any) -> httpx.Response:
    return httpx.request(
        method, f"{live.url}/api{path}", headers=bearer(token or live.token), timeout=PATIENCE_S, **more
    )


def submit(live: Live, token: str = "", **body: Any) -> httpx.Response:
    return ask(live, "POST", "/jobs/", token, json={"entrypoint": "true", **body})


def surroundings(live: Live, token: str = "") -> dict[str, str]:
    env = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "LLMSCHED_"))}
    token = token or live.token
    return {**env, "RAY_API_SERVER_ADDRESS": live.url, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def run(live: Live, command: list[str], cwd: Path, token: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=surroundings(live, token), cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def wrote(live: Live, name: str, text: str, attempt: int = 1) -> None:
    log = live.home / "storage" / name / "0" / str(attempt) / "logs" / "0.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)


def spec_of(live: Live, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(live.controller.state.workloads[name].workload.parcel)
    return found


def test_the_command_line_of_ray_submits_waits_and_shows_what_it_wrote(jobs: Live, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text("print('hello')\n")
    wrote(jobs, "ends", "hello\nbye\n")
    words = [str(RAY), "job", "submit", "--submission-id", "ends", "--working-dir", "code"]
    words += ["--metadata-json", '{"queue": "lab", "owner": "team-a"}', "--entrypoint-num-gpus", "2"]
    words += ["--entrypoint-num-cpus", "3", "--entrypoint-memory", "4000000000"]
    words += ["--runtime-env-json", '{"env_vars": {"MODE": "mine"}, "pip": ["einops>=0.8"]}']
    done = run(jobs, [*words, "--", "python", "main.py", "a b"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job 'ends' succeeded" in done.stdout and "hello\nbye\n" in done.stdout
    spec = spec_of(jobs, "ends")
    assert spec["queue"] == "lab" and spec["ray"]["run"] == ["/bin/sh", "-c", "python main.py 'a b'"]
    resources = {name: spec["resources"][name] for name in ("accelerators", "cpus", "memory")}
    assert resources == {"accelerators": ["A100:2"], "cpus": 3.0, "memory": 4_000_000_000}
    assert (spec["envs"], spec["environment"]["pip"]) == ({"MODE": "mine"}, ["einops>=0.8"])
    assert spec["ray"]["job"] == {"id": "ends", "metadata": {"queue": "lab", "owner": "team-a"}}
    kept = Storage.at(jobs.controller.storage).read(workdirs.key(spec["workdir"].removeprefix("sha256:")))
    assert b"main.py" in kept


def test_a_job_that_fails_ends_the_command_with_1_and_says_why(jobs: Live, tmp_path: Path) -> None:
    wrote(jobs, "fails", "Traceback\n")
    done = run(jobs, [str(RAY), "job", "submit", "--submission-id", "fails", "--", "false"], tmp_path)
    assert done.returncode == 1 and "Job 'fails' failed" in done.stdout + done.stderr
    assert "code 3" in done.stdout and "Traceback" in done.stdout
    assert spec_of(jobs, "fails")["retry"]["on_events"] == ["no-capacity", "interruption"]


CLIENT = """
import asyncio, json
from ray.job_submission import JobSubmissionClient, JobStatus
client = JobSubmissionClient()
said = {"version": client.get_version()}
job = client.submit_job(entrypoint="python -c 'print(1)'", submission_id="My_Job.1", runtime_env={"working_dir": "."})
again = client.submit_job(entrypoint="true", runtime_env={"working_dir": "."})
said["ids"] = [job, again]
said["status"] = client.get_job_status(job)
info = client.get_job_info(job)
said["info"] = [info.entrypoint, info.submission_id, info.metadata, info.start_time > 1e12, info.end_time]
said["list"] = sorted(one.submission_id for one in client.list_jobs())
said["logs"] = client.get_job_logs(job)
async def first():
    async for lines in client.tail_job_logs(job):
        return lines
said["tail"] = asyncio.run(first())
try:
    client.delete_job(job)
except RuntimeError as error:
    said["delete"] = str(error)
said["stopped"] = client.stop_job(job)
while client.get_job_status(job) != JobStatus.STOPPED: pass
said["stopped twice"] = client.stop_job(job)
said["deleted"] = client.delete_job(job)
said["left"] = sorted(one.submission_id for one in client.list_jobs())
try:
    client.get_job_info(job)
except RuntimeError as error:
    said["gone"] = str(error)
print(json.dumps(said))
"""


def test_the_client_of_ray_does_all_that_it_can(fresh: Live, tmp_path: Path) -> None:
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    name = "my-job-1-" + hashlib.sha256(b"My_Job.1").hexdigest()[:12]
    wrote(fresh, name, "one\ntwo\n")
    (tmp_path / "x.py").write_text("")
    done = run(fresh, [sys.executable, "-c", CLIENT], tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["version"] == "4" and said["ids"][0] == "My_Job.1" and said["ids"][1].startswith("raysubmit-")
    assert said["status"] in ("PENDING", "RUNNING")
    assert said["info"] == ["python -c 'print(1)'", "My_Job.1", {}, True, None]
    assert said["list"] == sorted(said["ids"])
    assert (said["logs"], said["tail"]) == ("one\ntwo\n", "one\n")
    assert "not_ended" in said["delete"] and "409" in said["delete"]
    assert (said["stopped"], said["stopped twice"], said["deleted"]) == (True, False, True)
    assert said["left"] == [said["ids"][1]] and "unknown_job" in said["gone"]
    told = [event.text for event in fresh.client().events(follow=False) if event.kind == "Unlisted"]
    assert told == ["operator took it off the list of Ray's jobs"]
    assert fresh.client().status(name).phase == "cancelled"  # it is history all the same


@pytest.mark.parametrize(
    ("body", "where", "said"),
    [
        ({"runtime_env": {"container": {"image": "x"}}}, "runtime_env.container", "is not supported"),
        ({"runtime_env": {"image_uri": "x"}}, "runtime_env.image_uri", "pip"),
        ({"runtime_env": {"conda": "x"}}, "runtime_env.conda", "is not supported"),
        ({"runtime_env": {"py_modules": ["gcs://a.zip"]}}, "runtime_env.py_modules", "working_dir"),
        ({"runtime_env": {"working_dir": "s3://b/x.zip"}}, "runtime_env.working_dir", "uploaded"),
        ({"runtime_env": {"working_dir": "gcs://_ray_pkg_aa.zip"}}, "runtime_env.working_dir", "has not been uploaded"),
        ({"runtime_env": {"pip": {"packages": [], "pip_version": "==1"}}}, "runtime_env.pip.pip_version", "packages"),
        ({"runtime_env": {"pip": ["--pre"]}}, "runtime_env.pip[0]", "options are not taken"),
        ({"runtime_env": {"env_vars": {"RAY_ADDRESS": "x"}}}, "runtime_env.env_vars", "set by llmsched itself"),
        ({"runtime_env": {"env_vars": {"HF_TOKEN": "abc"}}}, "runtime_env.env_vars", "llmsched secret set"),
        ({"entrypoint_num_gpus": 0.5}, "entrypoint_num_gpus", "whole GPUs"),
        ({"entrypoint_memory": 400_000_000}, "entrypoint_memory", "500MB"),
        ({"entrypoint_label_selector": {"zone": "a"}}, "entrypoint_label_selector.zone", "is not supported"),
        ({"metadata": {"llmsched.wrokers": "2"}}, "metadata.llmsched.wrokers", "workers, priority"),
        ({"metadata": {"llmsched.workers": "x"}}, "metadata.llmsched.workers", "expected"),
        ({"metadata": {"queue": "Not A Name"}}, "metadata.queue", "expected"),
        ({"entrypoint": "curl -H hf_abcdefghijklmnopqrstuv"}, "entrypoint", "looks like a key"),
        ({"metadata": {"a": "hf_abcdefghijklmnopqrstuv"}}, "metadata", "looks like a key"),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(jobs: Live, body: dict[str, Any], where: str, said: str) -> None:
    answer = submit(jobs, **body)
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["problems"]
    assert problem["where"] == where and said in problem["message"] + problem["hint"]


def test_all_that_is_wrong_is_said_at_once(jobs: Live) -> None:
    answer = submit(jobs, runtime_env={"container": {}, "conda": "x"}, entrypoint_num_gpus=1.5)
    assert len(answer.json()["problems"]) == 3


def test_a_job_says_how_many_workers_and_which_gpus_by_metadata_and_label(jobs: Live) -> None:
    wishes = {"llmsched.workers": "1..2", "llmsched.priority": "7"}
    submit(jobs, submission_id="wishes", metadata=wishes, entrypoint_label_selector={"ray.io/accelerator-type": "A100"})
    spec = spec_of(jobs, "wishes")
    lacking = submit(jobs, submission_id="keys", metadata={"llmsched.secrets": "HF_TOKEN, A_KEY"})
    assert lacking.json()["code"] == "missing_secret" and "HF_TOKEN" in lacking.text and "A_KEY" in lacking.text
    assert (spec["workers"], spec["priority"]) == ({"min": 1, "max": 2, "step": 1}, 7)
    assert spec["resources"]["accelerators"] == ["A100:1"]
    assert submit(jobs, submission_id="uv", runtime_env={"uv": ["einops"], "excludes": ["x"]}).status_code == 200
    assert spec_of(jobs, "uv")["environment"]["pip"] == ["einops"]


def test_a_queue_that_is_not_there_or_closed_is_said_and_a_name_is_taken_once(jobs: Live) -> None:
    assert submit(jobs, metadata={"queue": "laab"}).json()["code"] == "unknown_queue"
    eve = jobs.token_of("eve", "submitter")
    assert submit(jobs, eve, metadata={"queue": "far"}).status_code == 403
    assert submit(jobs, submission_id="once").status_code == 200
    for token in (jobs.token, eve):
        again = submit(jobs, token, submission_id="once")
        assert (again.status_code, again.json()["code"]) == (409, "name_taken")


def test_a_job_that_waits_says_why(jobs: Live) -> None:
    submit(jobs, submission_id="much", entrypoint_num_gpus=4, metadata={"llmsched.workers": "2"})
    submit(jobs, submission_id="waits", entrypoint_num_gpus=4, metadata={"llmsched.workers": "2"})
    wait_until(lambda: "no room" not in ask(jobs, "GET", "/jobs/waits").json()["message"], 10)
    told = ask(jobs, "GET", "/jobs/waits").json()
    assert told["status"] == "PENDING" and told["message"] == jobs.client().status("waits").reason.message


def test_what_one_uploaded_under_a_name_is_not_what_another_gets(jobs: Live, tmp_path: Path) -> None:
    from test_api_workdirs import packed

    ann, eve = (jobs.token_of(user, "submitter") for user in ("ann2", "eve2"))
    path = "/packages/gcs/_ray_pkg_0123456789abcdef.zip"
    assert ask(jobs, "GET", path, ann).status_code == 404
    assert ask(jobs, "PUT", path, ann, content=packed(10, "mine.py")).status_code == 200
    assert ask(jobs, "GET", path, ann).status_code == 200 and ask(jobs, "GET", path, eve).status_code == 404
    theirs = submit(jobs, eve, runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"})
    assert theirs.status_code == 422
    broken = ask(jobs, "PUT", path, eve, content=b"no zip")
    assert broken.status_code == 422 and "not a zip" in broken.json()["message"]
    assert ask(jobs, "GET", path, ann).status_code == 200
    large = ask(jobs, "PUT", path, eve, content=iter([b"x" * (1 << 20)] * 129))
    assert large.status_code == 413 and large.json()["code"] == "too_large"


def test_a_package_is_forgotten_with_what_it_holds(tmp_path: Path) -> None:
    from test_api_workdirs import packed

    now = time.time()
    uploads = workdirs.Uploads(lambda: Storage.at(str(tmp_path)), list, lambda: now)

    async def chunks() -> Any:
        yield packed(10)

    async def story() -> list[str | None]:
        nonlocal now
        await uploads.receive_package("_ray_pkg_1.zip", "ann", chunks())
        before = await uploads.find_package("_ray_pkg_1.zip", "ann")
        now += workdirs.KEPT_UNUSED_S + 1
        uploads.sweep([])
        return [before, await uploads.find_package("_ray_pkg_1.zip", "ann")]

    before, after = asyncio.run(story())
    assert before is not None and after is None
    assert list(Storage.at(str(tmp_path)).list("workdirs")) == []


def test_any_ray_workload_is_a_job_and_no_other_is(jobs: Live) -> None:
    client = jobs.client()
    client.apply(
        [
            {"name": "mine", "kind": "ray", "ray": {"run": ["python", "a b.py"]}, "envs": {"A": "b"}},
            {"name": "plain", "kind": "task", "task": {"run": ["true"]}},
        ]
    )
    told = ask(jobs, "GET", "/jobs/mine").json()
    assert told["entrypoint"] == "python 'a b.py'" and told["runtime_env"] == {"env_vars": {"A": "b"}}
    assert ask(jobs, "GET", "/jobs/plain").json()["code"] == "unknown_job"
    seen = ask(jobs, "GET", "/jobs/mine", jobs.token_of("aud", "auditor")).json()
    assert seen["runtime_env"] == {"env_vars": {"A": "***"}}  # who may only look sees the names


def test_nobody_names_a_workload_as_another_ones_job(jobs: Live) -> None:
    spec = {"name": "sly", "kind": "ray", "ray": {"run": ["x"], "job": {"id": "once", "metadata": {}}}}
    answer = ask(jobs, "POST", "/v1/apply", json={"specs": [spec]})
    assert answer.status_code == 422 and '"once"' in answer.text.replace("\\", "")


# --- the tail, which is a websocket ---------------------------------------------------------------------------------


def tail(live: Live, job: str, token: str, **headers: str) -> Any:
    url = live.url.replace("http://", "ws://") + f"/api/jobs/{job}/logs/tail"
    return connect(url, additional_headers={**bearer(token), **headers}, open_timeout=PATIENCE_S)


def test_the_tail_tells_as_it_is_written_and_ends_with_the_job(jobs: Live) -> None:
    submit(jobs, submission_id="long")
    wrote(jobs, "long", "one\n")
    wait_until(lambda: ask(jobs, "GET", "/jobs/long").json()["status"] == "RUNNING", 10)
    with tail(jobs, "long", jobs.token) as socket:
        assert socket.recv(timeout=PATIENCE_S) == "one\n"
        with (jobs.home / "storage" / "long" / "0" / "1" / "logs" / "0.log").open("a") as log:
            log.write("two\n")
        assert socket.recv(timeout=PATIENCE_S) == "two\n"
        ask(jobs, "POST", "/jobs/long/stop")
        with pytest.raises(ConnectionClosed) as ended:
            socket.recv(timeout=PATIENCE_S)
        assert ended.value.rcvd is not None and ended.value.rcvd.code == 1000


@pytest.mark.parametrize("who", ["nobody", "eve3", "evil page", "other host"])
def test_who_may_not_look_gets_no_tail(jobs: Live, who: str) -> None:
    ask(jobs, "POST", "/jobs/", json={"entrypoint": "true", "submission_id": "hidden"})
    token = {"nobody": "llms_x_y", "eve3": jobs.token_of("eve3", "submitter")}.get(who, jobs.token)
    more = {"evil page": {"origin": "http://evil"}, "other host": {"host": "evil:1"}}.get(who, {})
    with pytest.raises(InvalidStatus) as refused, tail(jobs, "hidden", token, **more):
        pass
    answer = refused.value.response
    assert answer.status_code == {"nobody": 401, "eve3": 404}.get(who, 403)
    assert json.loads(answer.body)["code"] in ("unauthorized", "unknown_job", "origin", "host")


def test_a_token_that_is_revoked_ends_its_tail(jobs: Live) -> None:
    from llmsched.api import home

    token = jobs.token_of("gone", "auditor")
    submit(jobs, submission_id="watched")
    wrote(jobs, "watched", "one\n")
    with tail(jobs, "watched", token) as socket:
        assert socket.recv(timeout=PATIENCE_S) == "one\n"
        kept = [one for one in home.made_records(jobs.home) if one.user != "gone"]
        home.save_records(jobs.home, kept)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=PATIENCE_S)


def test_a_tail_outlives_the_time_that_a_silent_connection_has(jobs: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has shown a token: it is not closed as one on which nobody asks anything."""
    from llmsched import connections

    monkeypatch.setattr(connections, "WAIT_AT_MOST_S", 1.0)
    submit(jobs, submission_id="slow")
    wrote(jobs, "slow", "one\n")
    with tail(jobs, "slow", jobs.token) as socket:
        assert socket.recv(timeout=PATIENCE_S) == "one\n"
        with pytest.raises(TimeoutError):
            socket.recv(timeout=3)
        with (jobs.home / "storage" / "slow" / "0" / "1" / "logs" / "0.log").open("a") as log:
            log.write("two\n")
        assert socket.recv(timeout=PATIENCE_S) == "two\n"
