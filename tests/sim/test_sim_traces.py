"""Traces: what is read, and how a wrong one is refused, with row and column."""

from __future__ import annotations

import gzip
import json

import pytest

from llmsched.errors import SpecError
from llmsched.sim import fleet
from llmsched.sim.traces import kueue, slurm, table

HEAD = "job_id,submit_s,num_gpus,duration_s\n"


def read(text, **options):
    return table.parse(text, "t.csv", **options)


def test_a_rigid_trace_is_read_in_order_of_submission_with_defaults():
    jobs = read(HEAD + "b,5,2,100\na,0,1,50.5\n")
    assert [(job.id, job.submit_s, job.gpus, job.duration_s, job.queue) for job in jobs] == [
        ("a", 0.0, 1, 50.5, "default"),
        ("b", 5.0, 2, 100.0, "default"),
    ]


def test_a_run_time_curve_makes_a_job_elastic_over_the_sizes_that_are_there():
    (job,) = read("job_id,submit_s,num_gpus,runtime_1_s,runtime_2_s,runtime_4_s\nj,0,3,100,60,\n")
    assert job.runtimes == ((1, 100.0), (2, 60.0))
    assert job.duration_s == 60.0  # its user asked for 3; the next smaller size is 2


FLAVORED = "job_id,submit_s,num_gpus,runtime_1_s:T4,runtime_1_s:A100,runtime_2_s:A100\n"


def test_run_times_by_flavor_are_read_and_written_and_the_fastest_flavor_is_the_one_to_compare_with(tmp_path):
    jobs = read(FLAVORED + "a,0,1,400,100,60\nb,1,1,50,,\n")
    assert jobs[0].by_flavor == (("T4", ((1, 400.0),)), ("A100", ((1, 100.0), (2, 60.0))))
    assert [(job.runtimes, job.flavors()) for job in jobs] == [
        (((1, 100.0), (2, 60.0)), ("A100", "T4")),
        (((1, 50.0),), ("T4",)),
    ]
    table.write(jobs, tmp_path / "t.csv")
    assert {frozenset(job.by_flavor) for job in table.read(tmp_path / "t.csv")} == {
        frozenset(job.by_flavor) for job in jobs
    }


def test_a_job_without_a_time_on_any_flavor_and_columns_that_contradict_each_other_are_refused():
    with pytest.raises(SpecError, match="runtime_N_s:FLAVOR: none has a value"):
        read(FLAVORED + "a,0,1,,,\n")
    with pytest.raises(SpecError, match="contradict each other"):
        read("job_id,submit_s,num_gpus,runtime_1_s,runtime_1_s:T4\na,0,1,5,5\n")


def test_the_elastic_option_cuts_a_curve_and_is_linear_without_one():
    curve = "job_id,submit_s,num_gpus,runtime_1_s,runtime_2_s,runtime_4_s\nj,0,1,100,60,40\n"
    assert [size for size, _ in read(curve, elastic=(2, 8))[0].runtimes] == [2, 4]
    assert read(HEAD + "j,0,2,100\n", elastic=(1, 4))[0].runtimes == ((1, 200.0), (2, 100.0), (3, 200 / 3), (4, 50.0))


def test_a_compressed_trace_is_read_by_its_first_bytes_not_its_name(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress((HEAD + "a,0,1,5\n").encode()))
    assert len(table.read(path)) == 1


def test_vc_is_a_queue_and_another_duration_column_can_be_named():
    (job,) = read("job_id,submit_s,num_gpus,true_duration_s,vc\na,0,1,5,prod\n", duration_column="true_duration_s")
    assert (job.queue, job.duration_s) == ("prod", 5.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job_id,submit_s\na,0\n", "t.csv:1: column num_gpus, duration_s is missing"),
        ("", "t.csv:1: column job_id, submit_s, num_gpus, duration_s is missing"),
        (HEAD, "t.csv: the trace has a header but no jobs"),
        (HEAD + "a,-1,1,5\n", "t.csv:2: column submit_s: -1 is less than 0"),
        (HEAD + "a,0,1,5\nb,0,1,-5\n", "t.csv:3: column duration_s: -5 is not above 0"),
        (HEAD + "a,0,1,nan\n", "t.csv:2: column duration_s: nan is not finite"),
        (HEAD + "a,soon,1,5\n", 't.csv:2: column submit_s: "soon" is not a number'),
        (HEAD + "a,0,0,5\n", "t.csv:2: column num_gpus: 0 is less than 1"),
        (HEAD + "a,0,1.5,5\n", "t.csv:2: column num_gpus: 1.5 is not a whole number"),
        (HEAD + "a,0,1,\n", "t.csv:2: column duration_s: is empty"),
        (HEAD + "a,0,1,5\nb,0,1,5\na,1,1,5\n", 't.csv:4: column job_id: "a" stands in row 2 already'),
        (HEAD + "a,0,1,5,6\n", "t.csv:2: has more values than the header has columns (4)"),
        (
            "job_id,submit_s,num_gpus,runtime_1_s\na,0,1,\n",
            "t.csv:2: column runtime_1_s: no column runtime_N_s has a value",
        ),
        (HEAD.strip() + ",min_gpus,max_gpus\na,0,1,5,4,2\n", "t.csv:2: column min_gpus: 4 is more than max_gpus, 2"),
    ],
)
def test_a_wrong_trace_is_refused_with_row_and_column(text, message):
    with pytest.raises(SpecError) as caught:
        read(text)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_text_is_refused_without_a_traceback(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(b"\x1f\x8bnot gzip at all")
    with pytest.raises(SpecError, match="cannot be read as a CSV"):
        table.read(path)
    with pytest.raises(SpecError, match="no such trace"):
        table.read(tmp_path / "absent.csv")


def test_nodes_are_read_from_words_and_wrong_words_are_refused():
    nodes = fleet.parse("2x8:V100, 1x4")
    assert [(node.id, node.flavor) for node in nodes] == [("n0", "V100"), ("n1", "V100"), ("n2", None)]
    assert fleet.gpus(nodes) == 20
    for wrong in ("8", "0x8", "2x8:", "2x8;1x4", "-1x8"):
        with pytest.raises(SpecError, match="is not count x GPUs"):
            fleet.parse(wrong)


SACCT = """JobID|Submit|Start|End|AllocTRES|Account|Partition|TimelimitRaw
1|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00|billing=8,cpu=8,gres/gpu=2,mem=64G,node=1|vision|gpu|120
2|2026-11-01T10:01:00|2026-11-01T10:06:00|2026-11-01T10:16:00|cpu=8,gres/gpu:a100=4,gres/gpu=4|nlp|gpu|UNLIMITED
2.batch|2026-11-01T10:01:00|2026-11-01T10:06:00|2026-11-01T10:16:00|cpu=8|nlp||
3|2026-11-01T10:02:00|Unknown|Unknown||nlp|gpu|60
4|2026-11-01T10:02:00|2026-11-01T10:03:00|2026-11-01T10:04:00|cpu=8|nlp|gpu|60
5|2026-11-01T10:02:00|2026-11-01T10:03:00|Unknown|gres/gpu=1|nlp|gpu|60
"""


def test_slurm_accounting_becomes_a_trace_and_says_what_it_leaves_out(tmp_path):
    found = slurm.parse(SACCT, "sacct.txt")
    assert [(j.id, j.submit_s, j.gpus, j.duration_s, j.queue, j.flavor, j.estimated_s) for j in found.jobs] == [
        ("1", 0.0, 2, 3600.0, "vision", None, 7200.0),
        ("2", 60.0, 4, 600.0, "nlp", "A100", None),
    ]
    assert found.left_out == {"never started": 1, "no GPU": 1, "still running": 1}
    table.write(found.jobs, tmp_path / "t.csv")
    assert [job.duration_s for job in table.read(tmp_path / "t.csv")] == [3600.0, 600.0]


def test_slurm_rows_as_sites_print_them_arrays_het_jobs_requeues_cancelled_jobs_and_elapsed_times():
    begin = "2026-10-25T00:30:00"
    rows = [
        f"123_4|{begin}|{begin}|2026-10-26T01:30:10|1-01:00:10|COMPLETED|gres/gpu:h100=8,gres/gpu=8|lab|1-02:00:00",
        f"123_[5-9]|{begin}|Unknown|Unknown|00:00:00|PENDING||lab|1-02:00:00",
        f"124+0|{begin}|{begin}|2026-10-25T01:30:00|01:00:00|COMPLETED|gres/gpu=2|lab|UNLIMITED",
        f"124+1|{begin}|{begin}|2026-10-25T01:30:00|01:00:00|COMPLETED|gres/gpu=4|lab|Partition_Limit",
        f"125|{begin}|{begin}|2026-10-25T00:40:00|00:10:00|NODE_FAIL|gres/gpu=1|lab|60:00",
        "125|2026-10-25T00:40:00|2026-10-25T00:50:00|2026-10-25T02:30:00|02:40:00|COMPLETED|gres/gpu=1|lab|60:00",
        f"126|{begin}|{begin}|2026-10-25T00:35:00|00:05:00|CANCELLED by 1001|gres/gpu=1|lab|",
        f"127|{begin}|2026-10-25T00:31:00|2026-10-25T00:31:00|00:00:00|CANCELLED by 1001|gres/gpu=1|lab|",
        f"128|{begin}|None|2026-10-25T00:31:00|00:00:00|CANCELLED by 1001||lab|",
        f"126.batch|{begin}|{begin}|2026-10-25T00:35:00|00:05:00|CANCELLED|gres/gpu=1|lab|",
    ]
    header = "JobID|Submit|Start|End|Elapsed|State|AllocTRES|Account|Timelimit"
    found = slurm.parse("\n".join([header, *rows, ""]), "sacct.txt")
    assert [(job.id, job.gpus, job.duration_s, job.flavor, job.estimated_s) for job in found.jobs] == [
        ("123_4", 8, 90_010.0, "H100", 93_600.0),
        ("124+0", 2, 3600.0, None, None),
        ("124+1", 4, 3600.0, None, None),
        ("125", 1, 600.0, None, 3600.0),
        ("126", 1, 300.0, None, None),
        ("125#2", 1, 9600.0, None, 3600.0),  # an hour longer than its clock times: the clocks were set back meanwhile
    ]
    assert found.left_out == {"never started": 2, "ran for no time": 1}


def test_slurm_rows_that_contradict_themselves_or_are_cut_off_are_counted_out_and_not_fatal():
    rows = [
        "1|ann|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00|gres/gpu=2",
        "2|ann|2026-11-01T10:10:00|2026-11-01T10:05:00|2026-11-01T11:05:00|gres/gpu=2",  # begun before it was submitted
        "3|ann|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T10:04:00|gres/gpu=2",  # ended before it began
        "4|ann|2026-11-01T10:00:00|2026-11-01T10:05",
        "5|ann|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T10:06:00|gres/gpu=2|more",
    ]
    found = slurm.parse("\n".join(["JobID|User|Submit|Start|End|AllocTRES", *rows, ""]), "s")
    assert [(job.id, job.user) for job in found.jobs] == [("1", "ann")]
    assert found.left_out == {"its times contradict each other": 2, "has more or fewer values than the header": 2}


def test_slurm_rows_that_are_none_are_counted_out_whatever_ends_a_line():
    row = "{}|{}|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00|gres/gpu=2"
    rows = ["JobID|User|Submit|Start|End|AllocTRES", row.format(1, "ann"), row.format(2, "a\rb"), row.format(3, "ann")]
    found = slurm.parse("\n".join([*rows, row.format(4, "x" * 200_000), ""]), "s")
    assert [job.id for job in found.jobs] == ["1", "3"]
    assert found.left_out == {"has more or fewer values than the header": 2, "cannot be read as a row": 1}
    assert [job.id for job in slurm.parse("\r".join([*rows[:2], rows[3], ""]), "s").jobs] == ["1", "3"]
    with pytest.raises(SpecError, match="no table"):
        slurm.parse("x" * 200_000, "s")


def test_slurm_rows_with_numbers_and_names_that_none_can_have_end_no_import(tmp_path):
    """They ended it, or what it printed was refused by `sim run`."""
    head = "JobID|Submit|Start|End|ElapsedRaw|TimelimitRaw|AllocTRES"
    row = "{}|2026-11-01T10:00:00|2026-11-01T10:01:00|2026-11-01T10:02:00|{}|{}|gres/gpu={}"
    odd = [
        ("1", "\u00b2", "5", "1"),
        ("2", "60", "\u00b2", "1"),
        ("3", "60", "9" * 400, "1"),
        ("4", "60", "5", "9" * 5000),
    ]
    odd += [("", "60", "5", "1"), (" ", "60", "5", "1"), ("5", "9" * 400, "5", "1"), ("6", "60", "-5", "1")]
    odd += [(job, "60", "5", "1") for job in ("9", "9#2", "9")]
    found = slurm.parse("\n".join([head, *(row.format(*each) for each in odd), ""]), "s")
    assert {job.id: job.estimated_s for job in found.jobs} == (
        {"2": None, "3": None, "6": None, "9": 300.0, "9#2": 300.0, "9#3": 300.0}
    )
    assert found.left_out == {
        "has a time that cannot be read": 2, "has more than 100,000 GPUs": 1, "has no JobID": 2,
    }  # fmt: skip


def test_a_slurm_row_that_ran_for_less_than_no_time_is_counted_out():
    """Clocks that were set back while a job ran leave such rows."""
    row = "{}|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00|{}|gres/gpu=2"
    text = "\n".join(["JobID|Submit|Start|End|ElapsedRaw|AllocTRES", row.format(1, "3600"), row.format(2, "-5"), ""])
    found = slurm.parse(text, "s")
    assert [job.id for job in found.jobs] == ["1"]
    assert found.left_out == {"its times contradict each other": 1}


def test_a_slurm_job_on_two_types_of_gpu_keeps_their_sum_and_is_counted():
    row = "7|2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T11:05:00|{}"
    head = "JobID|Submit|Start|End|AllocTRES"
    found = slurm.parse(f"{head}\n{row.format('gres/gpu:a100=2,gres/gpu:v100=1,gres/gpu=3')}\n", "s")
    assert [(job.gpus, job.flavor) for job in found.jobs] == [(3, None)]
    assert list(found.changed.values()) == [1]
    partly = slurm.parse(f"{head}\n{row.format('gres/gpu:a100=2,gres/gpu=4')}\n", "s")  # two of no named type
    assert [(job.gpus, job.flavor) for job in partly.jobs] == [(4, "A100")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("JobID|Submit\n", "s:1: column Start, End is missing"),
        (SACCT.replace("2026-11-01T1", "in 1"), 's:2: column Submit: "in 10:00:00" is not a time'),
        (SACCT.splitlines()[0] + "\n", "s: no job in it ran on a GPU"),
        (
            SACCT.replace("TimelimitRaw", "Elapsed").replace("|120", "|long"),
            's:2: column Elapsed: "long" is not a length such as 1-02:03:04',
        ),
    ],
)
def test_wrong_slurm_accounting_is_refused_with_its_place(text, message):
    with pytest.raises(SpecError) as caught:
        slurm.parse(text, "s")
    assert str(caught.value).startswith(message)


def test_a_row_that_cannot_be_is_counted_out_and_the_others_stay():
    head = "JobID|Submit|Start|End|ElapsedRaw|AllocTRES"
    times = "2026-11-01T10:00:00|2026-11-01T10:05:00|2026-11-01T10:06:00"
    found = slurm.parse(
        f"""{head}
1|{times}|60|gres/gpu=1
2|9999-99-01T10:00:00|{times[20:]}|60|gres/gpu=1
3|{times}|99999|gres/gpu=1
4|{times}|60|gres/gpu=99999999999999999999
5|{times}|3660|gres/gpu=1
6|{times}|long|gres/gpu=1
""",
        "s",
    )
    assert [job.id for job in found.jobs] == ["1", "5"]  # the clocks went back while 5 ran
    assert found.left_out == {
        "has a time that cannot be read": 2,
        "its times contradict each other": 1,
        "has more than 100,000 GPUs": 1,
    }


def test_kueue_workloads_become_a_trace():
    def item(name, gpus, finished=True):
        admitted = "False" if gpus == 3 else "True"  # evicted, and waits again
        conditions = [{"type": "Admitted", "status": admitted, "lastTransitionTime": "2026-11-01T10:00:30Z"}]
        if finished:
            conditions.append({"type": "Finished", "lastTransitionTime": "2026-11-01T10:10:30Z"})
        pod = {"spec": {"containers": [{"resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}]}}
        return {
            "metadata": {"name": name, "namespace": "lab", "creationTimestamp": "2026-11-01T10:00:00Z"},
            "spec": {"queueName": "research", "podSets": [{"count": 4, "template": pod}]},
            "status": {"conditions": conditions},
        }

    found = kueue.parse(
        json.dumps({"items": [item("a", 2), item("b", 1, finished=False), item("c", 0), item("d", 3, False)]}), "k.json"
    )
    assert [(j.id, j.gpus, j.duration_s, j.queue) for j in found.jobs] == [("lab/a", 8, 600.0, "research")]
    assert found.left_out == {"still running": 1, "no GPU": 1, "never started": 1}
    for wrong in ("[]", '{"items": null}', "{"):
        with pytest.raises(SpecError, match="is not a list of Kueue workloads"):
            kueue.parse(wrong, "k.json")
