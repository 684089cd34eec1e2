"""Endpoints in the simulator: requests wait, are answered and counted; replicas come and go beside elastic jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmsched.cli.main import cli
from llmsched.errors import SpecError
from llmsched.sim import endpoints

SPEC = """
name: chat
kind: serve
queue: serving
priority: 80
resources: {accelerators: "T4:1"}
replicas: REPLICAS
autoscaling: {target_ongoing_requests: 3, upscale_delay_s: 5, downscale_delay_s: 60}
max_ongoing_requests: 4
drain_timeout: 1m
serve: {model: {source: hf://Qwen/Qwen2.5-0.5B-Instruct}}
"""
SHARED = """
cohorts: [{name: all}]
queues:
  - {name: serving, cohort: all, quota: {T4: {nominal: 6}}}
  - {name: train, cohort: all, quota: {T4: {nominal: 2}}}
scheduling: {preemption: {reclaim: any}}
"""
JOBS = (
    "job_id,submit_s,num_gpus,queue,runtime_1_s,runtime_2_s,runtime_4_s,runtime_8_s\na,0,1,train,9000,4500,2250,1125\n"
)
RATE = "# what it is\nt_s,rate_rps\n0,0.1\n1200,1.5\n2400,0.1\n3600,0\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("chat.yaml").write_text(SPEC.replace("REPLICAS", "0..6"))
    Path("shared.yaml").write_text(SHARED)
    Path("jobs.csv").write_text(JOBS)
    Path("rate.csv").write_text(RATE)
    return tmp_path


def run(*more: str, endpoint: str = "chat.yaml=rate.csv,service=8s,start=20s,patience=5s") -> Any:
    words = ["sim", "run", "jobs.csv", "--nodes", "2x4:T4", "--config", "shared.yaml", "--restart-cost", "10"]
    result = CliRunner().invoke(cli, [*words, "--endpoint", endpoint, "--json", *more])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_an_endpoint_takes_gpus_of_an_elastic_job_for_its_peak_and_gives_them_back(folder: Path) -> None:
    found = run("--out", "out")
    chat = found["endpoints"]["chat"]
    assert found["finished"] == 1 and found["quota_violations"] == 0
    assert 1600 < chat["requests"] < 2500, "0.1 and 1.5 a second by chance"
    assert 4 <= chat["most_replicas"] <= 6 and chat["new_replicas"] >= chat["most_replicas"]
    assert chat["handover_p95_s"] <= 30, "the job gives way in a second, a replica starts in 20 s"
    assert chat["late_pct"] < 5 and chat["wait_p99_s"] < 30
    assert chat["busy_gpu_hours"] * 3600 == pytest.approx(chat["requests"] * 8 / 4, rel=0.1), "all were answered"
    assert chat["gpu_hours"] < 4 and found["resizes"] >= 2 and found["used"] > 0.5
    page = (folder / "out" / "timeline.html").read_text()
    assert '"chat/0"' in page and '"a"' in page


def test_the_same_seed_gives_the_same_day_and_another_one_another(folder: Path) -> None:
    first, again, other = run(), run(), run("--seed", "1")
    assert first["digest"] == again["digest"] and first["endpoints"] == again["endpoints"]
    assert first["endpoints"]["chat"]["requests"] != other["endpoints"]["chat"]["requests"]


def test_too_few_replicas_are_late_and_a_fixed_number_holds_what_it_holds(folder: Path) -> None:
    Path("chat.yaml").write_text(SPEC.replace("REPLICAS", "2").replace("autoscaling", "# autoscaling"))
    chat = run("--until", "3600")["endpoints"]["chat"]
    assert chat["most_replicas"] == 2 and chat["gpu_hours"] == pytest.approx(2.0, rel=0.01)
    assert chat["late_pct"] > 30 and chat["wait_p95_s"] > 60


def test_a_target_is_held_by_what_was_measured_and_judged_by_windows(folder: Path) -> None:
    slo = SPEC.replace("REPLICAS", "1..6") + "slo: {latency_p95: 12s}\n"
    Path("chat.yaml").write_text(slo.replace("target_ongoing_requests: 3", "target_ongoing_requests: 0.5"))
    Path("rate.csv").write_text("t_s,rate_rps\n0,0.5\n3600,0.5\n7200,0\n")
    chat = run("--until", "7200", endpoint="chat.yaml=rate.csv,service=6s..12s,start=20s,patience=5s")["endpoints"][
        "chat"
    ]
    assert chat["missed_windows_pct"] < 20 and chat["missed_pct"] < 5
    assert chat["gpu_hours"] < 9, "by target_ongoing_requests all 6 would run for all of two hours"
    Path("chat.yaml").write_text(slo.replace("1..6", "1").replace("autoscaling", "# autoscaling"))
    alone = run("--until", "7200", endpoint="chat.yaml=rate.csv,service=6s..12s,start=20s")["endpoints"]["chat"]
    assert alone["missed_windows_pct"] > 80


def test_replicas_are_there_before_a_peak_that_the_past_had(folder: Path) -> None:
    rates = [1.5 if hour % 24 == 12 else 0.1 for hour in range(62)]
    for file, hours in (("past.csv", rates[:59]), ("rate.csv", rates[59:])):
        rows = [f"{number * 3600},{rate}" for number, rate in enumerate(hours)]
        Path(file).write_text("\n".join(["t_s,rate_rps", *rows]))
    late = {}
    for way, forecast in (("ahead", "on"), ("follows", "off")):
        text = SPEC.replace("REPLICAS", "0..6").replace("{target", f"{{forecast: {forecast}, target")
        Path("chat.yaml").write_text(text)
        found = run("--until", "9000", endpoint="chat.yaml=rate.csv,past=past.csv,service=8s,start=20s,patience=5s")
        late[way] = found["endpoints"]["chat"]["late"]
    assert late["ahead"] < 0.2 * late["follows"], late


def test_what_can_be_read_in_the_table(folder: Path) -> None:
    words = ["sim", "run", "jobs.csv", "--nodes", "2x4:T4", "--config", "shared.yaml", "--endpoint"]
    said = CliRunner().invoke(cli, [*words, "chat.yaml=rate.csv,service=8s"]).output
    assert "endpoint chat" in said and "a new one answers" in said and "of all GPU hours" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chat.yaml", "needs a spec, a file of rates, and service"),
        ("chat.yaml=rate.csv", "needs a spec, a file of rates, and service"),
        ("chat.yaml=rate.csv,service=0s", "needs a spec, a file of rates, and service"),
        ("chat.yaml=rate.csv,servic=8s", '"servic" is not known; expected service, start, patience, past'),
        ("chat.yaml=rate.csv,service=soon", "service: "),
        ("chat.yaml=rate.csv,service=8s..6s", "service: a full replica is no faster"),
        ("chat.yaml=rate.csv,service=8s..soon", "service: "),
        ("chat.yaml=rate.csv,service=8s,past=none.csv", "cannot be read: .*No such file"),
        ("none.yaml=rate.csv,service=8s", "cannot be read: No such file"),
        ("chat.yaml=none.csv,service=8s", "cannot be read: .*No such file"),
        ("chat.yaml=jobs.csv,service=8s", "expected the columns t_s"),
        ("chat.yaml=back.csv,service=8s", "times ascending, rates of 0 or more"),
        ("task.yaml=rate.csv,service=8s", "has 0 specs of kind serve; expected one"),
        ("two.yaml=rate.csv,service=8s", "a simulated replica has one whole GPU"),
    ],
)
def test_what_is_no_endpoint_is_refused(folder: Path, text: str, words: str) -> None:
    Path("back.csv").write_text("t_s,rate_rps\n10,1\n5,1\n")
    Path("task.yaml").write_text("name: t\nkind: task\ntask: {run: [ls]}\n")
    Path("two.yaml").write_text(SPEC.replace("REPLICAS", "1..2").replace("T4:1", "T4:2"))
    with pytest.raises(SpecError, match=words):
        endpoints.parse(text)


def test_an_endpoint_and_a_job_of_one_name_are_refused(folder: Path) -> None:
    Path("jobs.csv").write_text(JOBS.replace("a,0", "chat,0"))
    words = ["sim", "run", "jobs.csv", "--nodes", "2x4:T4", "--endpoint", "chat.yaml=rate.csv,service=8s"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2 and '"chat" is the name of two' in result.output
