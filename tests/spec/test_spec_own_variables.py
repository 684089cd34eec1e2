"""What llmsched tells each process itself no spec may say for all: it would lead to a neighbour or a wrong place."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.runtime.rendezvous import Rendezvous
from llmsched.spec import own_variables
from llmsched.spec.load import load

TASK = "name: a\nkind: task\nworkers: 2\ntask: {run: [torchrun, train.py]}\n"


def refused(more: str) -> str:
    with pytest.raises(SpecError) as raised:
        load(TASK + more)
    return str(raised.value)


@pytest.mark.parametrize("said", ["envs: {RANK: 0}", "envs: {MASTER_PORT: 29500}", "secrets: [MASTER_ADDR]"])
def test_where_processes_meet_is_not_said_for_all_of_them(said: str) -> None:
    assert "set by llmsched itself, another one for each process; leave it out" in refused(said)


def test_whatever_a_process_is_told_of_its_place_is_no_specs_to_say() -> None:
    order = {"gang": "a/0", "attempt": 1, "members": [{}, {}], "spec": {"task": {"run": ["torchrun", "x"]}}}
    meeting = Rendezvous.of(order, 0, ["127.0.0.2", "127.0.0.3"], 1)
    told = {name for worker in (0, 1) for process in meeting.processes_of(worker) for name in process}
    assert told and told <= set(own_variables.MEETING)


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_gpus_are_not_chosen_past_those_that_were_given_but_may_be_hidden(name: str) -> None:
    """A task with `CUDA_VISIBLE_DEVICES: 0` computed on the first GPU of its node, whoever had it."""
    assert "as many as resources.accelerators says" in refused(f"envs: {{{name}: '0,1'}}")
    assert load(TASK + f"envs: {{{name}: ''}}")[0].envs == {name: ""}
