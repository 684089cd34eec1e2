"""llmsched sim on the command line: JSON, tables, folders, imports, replays, and exit codes."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner
from waiting import PATIENCE_S

from llmsched.cli.main import cli
from llmsched.core.decisions import Launch
from llmsched.core.facts import Bound, NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.sim.traces import table
from llmsched.store.journal import Batch
from llmsched.store.sqlite import SqliteStore

TRACE = "job_id,submit_s,num_gpus,duration_s\na,0,4,100\nb,1,4,10\n"


def call(*words):
    return CliRunner().invoke(cli, ["sim", *map(str, words)])


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TRACE)
    return path


def test_run_prints_one_json_object_or_a_table(trace):
    found = json.loads(call("run", trace, "--nodes", "1x4", "--ordering", "fifo", "--json").output)
    assert (found["finished"], found["makespan_s"]) == (2, 110.0)
    assert "average job completion time" in call("run", trace, "--nodes", "1x4").output


def test_run_writes_a_report_and_a_page_that_runs_no_name_as_markup(trace, tmp_path):
    trace.write_text(TRACE.replace("a,", "<script>alert(1)</script>,"))
    done = call("run", trace, "--nodes", "1x4", "--ordering", "fifo", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "timeline.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert json.loads((tmp_path / "out" / "report.json").read_text())["jobs"] == 2
    assert (tmp_path / "out" / "jobs.csv").read_text().count("\n") == 3
    assert "\nb,1,100,nodes," in (tmp_path / "out" / "waits.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", "1x2"), "needs 4 GPUs, there are 2"),
        (("--nodes", "many"), "is not count x GPUs"),
        (("--nodes", "1x4", "--ordering", "lottery"), 'no ordering policy is called "lottery"'),
        (("--nodes", "1x4", "--estimates", "guess"), '"guess" is not known'),
        (("--nodes", "1x4", "--elastic", "4..1"), "is not MIN..MAX"),
        (("--nodes", "1x4", "--config", "absent.yaml"), "cannot be read"),
        (("--nodes", "1x4", "--faults", "often"), "is not MTBF"),
        (("--nodes", "1x4", "--until", "nan"), "nan is not a finite number of seconds"),
        (("--nodes", "1x4", "--restart-cost", "inf"), "inf is not a finite number of seconds"),
        (("--nodes", "1x4", "--quantum", "-1"), "-1.0 is not in the range"),
        (("--nodes", "1x4", "--seed", "dice"), "'dice' is not a valid integer"),
        (("--nodes", "1x4", "--out", "/dev/null/there"), "/dev/null is not a folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(trace, words, message):
    done = call("run", trace, *words)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_run_that_cannot_be_leaves_no_folder_behind_and_names_the_row(trace, tmp_path):
    done = call("run", trace, "--nodes", "1x2", "--out", tmp_path / "out")
    assert done.exit_code == 2 and f"{trace}:2: column num_gpus: job a needs 4 GPUs" in done.output
    assert not (tmp_path / "out").exists()


def test_import_slurm_makes_a_trace_that_run_accepts(tmp_path):
    source = tmp_path / "sacct.txt"
    source.write_text(
        "JobID|Submit|Start|End|AllocTRES|Account|TimelimitRaw\n"
        "7|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00|gres/gpu=2|lab|120\n"
    )
    done = call("import", "slurm", source, "-o", tmp_path / "t.csv")
    assert done.exit_code == 0, done.output
    assert json.loads(call("run", tmp_path / "t.csv", "--nodes", "1x2", "--json").output)["makespan_s"] == 3600.0


def test_the_command_that_an_import_ends_with_works_whatever_the_jobs_and_the_name_of_the_file(tmp_path):
    source = tmp_path / "our jobs.txt"
    times = "2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00"
    source.write_bytes(
        b"JobID|User|Submit|Start|End|AllocTRES|Account\n"
        + f"7|jos\u00e9|{times}|gres/gpu:a100=200|lab\n".encode("latin-1")
        + f"8|ann|{times}|gres/gpu=3|lab\n".encode()
        + f"9|a\0b|{times}|gres/gpu:a100:1=4|lab\n".encode()  # a zero in a name, a colon in a type
    )
    done = call("import", "slurm", source)
    assert done.exit_code == 0, done.output
    command = shlex.split(done.output.splitlines()[-1].removeprefix("Next: "))
    assert command[:3] == ["llmsched", "sim", "run"] and command[-1] == "1x8,25x8:A100,1x8:A100-1"
    assert json.loads(call(*command[2:], "--json").output)["makespan_s"] == 3600.0
    users = [job.user for job in table.read(source.with_suffix(".csv"))]
    assert users == ["jos\\xe9", "ann", "a\\x00b"]  # told apart, though the bytes are no UTF-8


def test_an_import_of_what_is_no_text_is_refused_in_words(tmp_path):
    source = tmp_path / "jobs.txt"
    source.write_bytes("JobID|Submit\n".encode("utf-16"))
    done = call("import", "slurm", source)
    assert done.exit_code == 2 and "not in UTF-8" in done.output


@pytest.fixture
def journal(tmp_path):
    store = SqliteStore(tmp_path / "state.sqlite")
    store.open()
    store.take_over("test", store.lease())
    gpu = (Group("workers", 1, (Option(None, Resources(gpus_milli=1000)),)),)
    entries = [
        (1.0, NodeJoined(1.0, Node("n0", Resources(gpus_milli=1000)))),
        (2.0, Submitted(2.0, Workload("tune", "tune", "train", gpu))),
        (2.0, Launch("tune/0", 1, (Placed("workers", "n0", 0),))),
        (3.0, Bound(3.0, "tune/0", 1)),
        (4.0, Submitted(4.0, Workload("late", "late", "train", gpu))),
    ]
    for at, entry in entries:
        store.commit(Batch(at, [entry])).result(PATIENCE_S)
    store.close()
    return tmp_path / "state.sqlite"


def test_replay_folds_a_journal_up_to_a_moment_and_explains_who_waits(journal):
    before = journal.read_bytes()
    found = json.loads(call("replay", journal, "--until", 3, "--json").output)
    assert (found["entries"], found["later_entries"], found["workloads"]) == (4, 1, {"running": 1})
    whole = json.loads(call("replay", journal, "--explain", "late", "--json").output)
    assert whole["explain"]["phase"] == "waiting"
    assert "1 GPU" in whole["explain"]["waits"]["late/0"]
    assert whole["violations"] == []
    assert "late" in call("replay", journal, "--explain", "late").output
    assert journal.read_bytes() == before


def test_replay_refuses_what_is_no_journal_and_a_name_it_does_not_know(journal, trace):
    assert call("replay", trace).exit_code == 2
    assert call("replay", journal, "--explain", "nobody").exit_code == 3
