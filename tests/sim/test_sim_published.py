"""Traces in the columns of the papers that published them become jobs of ours; what they cannot mean is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmsched.cli.main import cli
from llmsched.errors import SpecError
from llmsched.sim.traces import published

SHARED = Path(__file__).parents[2] / ".." / "shared" / "traces"
PROFILES = "gpu,job_type,num_gpus,steps_per_s\nv100,LM,1,2.0\nv100,LM,2,3.0\nk80,LM,1,0.5\n"
GAVEL = "vc,job_id,submit_s,num_gpus,job_type,total_steps\na,0,5.0,1,LM,200\na,1,0.0,2,LM,300\nb,2,9.0,4,LM,10\n"


def test_steps_become_seconds_at_the_measured_speed_and_an_unmeasured_size_is_left_out() -> None:
    found = published.gavel(GAVEL, "g.csv", PROFILES)
    assert [(job.id, job.gpus, job.duration_s, job.queue, job.model, job.steps) for job in found.jobs] == [
        ("a-1", 2, 100.0, "a", "LM", 300.0),
        ("a-0", 1, 100.0, "a", "LM", 200.0),
    ]
    assert found.jobs[1].by_flavor == (("V100", ((1, 100.0),)), ("K80", ((1, 400.0),)))
    assert sum(found.left_out.values()) == 1


def test_minutes_become_seconds() -> None:
    (job,) = published.chronus("job_id,vc,num_gpus,submit_time,duration\n7,vc_a,2,3,10\n", "c.csv").jobs
    assert (job.id, job.queue, job.gpus, job.submit_s, job.duration_s) == ("7", "vc_a", 2, 180.0, 600.0)


def test_pods_without_a_whole_gpu_are_counted_and_left_out() -> None:
    head = "job_id,num_gpu,gpu_milli,qos,submit_s,end_s,scheduled_time\n"
    found = published.openb(
        head + "a,1,1000,LS,0,50,10\nb,1,460,LS,0,50,0\nc,0,0,BE,0,9,0\nd,2,1000,BE,5,9,\n", "o.csv"
    )
    assert [(job.id, job.gpus, job.duration_s, job.queue) for job in found.jobs] == [("a", 1, 40.0, "LS")]
    assert found.left_out == {"a share of a GPU": 1, "no GPU": 1, "never started": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job_id,num_gpus\n1,1\n", "c.csv:1: column submit_time, duration is missing"),
        ("job_id,vc,num_gpus,submit_time,duration\n7,v,x,3,10\n", "c.csv:2"),
        (
            "job_id,vc,num_gpus,submit_time,duration\n7,v,1,-3,10\n",
            "c.csv:2: job 7 has no GPU, no run time or a negative",
        ),
        ("job_id,vc,num_gpus,submit_time,duration\n", "no row of it can be replayed"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(text: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        published.chronus(text, "c.csv")
    assert said in str(refused.value)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared traces are not here")
@pytest.mark.parametrize(
    ("source", "file", "jobs"),
    [
        ("gavel", "gavel_msr_seed0.csv.gz", 5958),
        ("chronus", "chronus_philly_mix1.csv.gz", 30940),
        ("openb", "openb_pods_first_half.csv.gz", None),
    ],
)
def test_the_published_files_are_read_and_can_be_replayed(
    source: str, file: str, jobs: int | None, tmp_path: Path
) -> None:
    words = ["sim", "import", source, str(SHARED / "train" / file), "-o", str(tmp_path / "t.csv"), "--json"]
    if source == "gavel":
        refused = CliRunner().invoke(cli, words)
        assert refused.exit_code == 2 and "--profiles" in refused.output
        words += ["--profiles", str(SHARED / "profiles" / "gavel_isolated_throughput.csv")]
    found = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    assert found["jobs"] + sum(found["left_out"].values()) == (jobs or 4076) and found["jobs"] > 100
    nodes = "16x32:V100" if source == "gavel" else "16x32"
    words = ["sim", "run", str(tmp_path / "t.csv"), "--nodes", nodes, "--until", "20000", "--json"]
    assert json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)["quota_violations"] == 0
