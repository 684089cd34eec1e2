"""Commands and Ray programs: what of them is refused, and where."""

import pytest
from test_spec_load import TASK, refusal, section

from llmsched.spec.load import load

RAY = "name: a\nkind: ray\nray: {run: [x]}\n"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (section("task", "{run: [x], processes_per_worker: 0}"), "3:40", "or a whole number from 1 to 1024"),
        (section("task", "{run: [x], processes_per_worker: gpus}"), "3:40", "needs resources.accelerators"),
        (TASK + "processes_per_worker: 2", "4:1", 'Did you mean "task.processes_per_worker"?'),
        (
            section("task", "{run: [x], processes_per_worker: gpus}") + "\nresources: {accelerators: 'L4:0.5'}",
            "3:40",
            "needs whole GPUs, and resources.accelerators has L4:0.5",
        ),
        (
            section("task", "{run: [torchrun, --standalone, t.py]}") + "\nworkers: 1..2",
            "3:13",
            '"--standalone" makes every worker train a copy of its own',
        ),
        (section("task", "{run: [bash, -c, deepspeed t.py]}") + "\nworkers: 2", "3:13", "write torchrun instead"),
        (
            section("task", "{run: [torchrun, --nnodes=2, --node_rank=0, t.py]}") + "\nworkers: 2",
            "3:13",
            '"--node_rank=0" gives every worker the same place',
        ),
        (
            section("task", "{run: [python, -m, torch.distributed.run, --nnodes, '4', t.py]}") + "\nworkers: 1..4",
            "3:13",
            '"--nnodes 4" waits for 4 workers, and workers is 1..4; leave it out',
        ),
        (section("task", "{run: [bash, -c, 'torchrun --nnodes=2 t.py']}"), "3:13", "and workers is 1; leave it out"),
        (
            section("task", "{run: [accelerate, launch, --num_machines, '2', t.py]}") + "\nworkers: 2",
            "3:13",
            '"--num_machines 2" makes every worker machine 0',
        ),
        (RAY + "resources: {cpus: 1.5}", "4:19", "whole number of CPUs, and at least 1"),
        (RAY + "resources: {accelerators: ['T4:1', 'L4:0.5']}", "4:36", "a node of a Ray has whole GPUs, got L4:0.5"),
        (RAY + "resources: {memory: 100MB}", "4:21", "at least 500MB"),
        (section("ray", "{run: [x], object_store_memory: 2GB}") + "resources: {memory: 1GB}", "3:38", "must be less"),
        (section("ray", "{run: [x], object_store_memory: 2MB}"), "3:38", "expected at least 80MB"),
    ],
)
def test_what_cannot_be_started_so_is_refused_with_its_place(text, place, words):
    matching = [problem for problem in refusal(text).problems if words in str(problem)]
    assert [problem.where for problem in matching] == [f"a.yaml:{place}"]


@pytest.mark.parametrize(
    "run",
    [
        "[torchrun, --nnodes=2, --nproc-per-node=4, t.py]",
        "[bash, -c, 'torchrun --nnodes=$PET_NNODES --node_rank=$NODE_RANK t.py']",
        "[bash, -c, 'accelerate launch --num_machines 2 --machine_rank $NODE_RANK t.py']",
        "[python, t.py, --node_rank=0, --nnodes=7]",
    ],
)
def test_what_a_launcher_is_told_rightly_or_by_a_shell_is_taken(run):
    assert load(section("task", f"{{run: {run}}}") + "\nworkers: 2")
