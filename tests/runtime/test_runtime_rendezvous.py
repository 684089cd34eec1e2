"""How the processes of a gang find each other: programs that know torchrun's variables and nothing of us."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from test_runtime_task import Worker

from llmsched.runtime.rendezvous import HeldPort, Rendezvous
from llmsched.runtime.task import Ending

WHO = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
print(json.dumps([os.environ.get(name) for name in names]))
"""
# What stands at the top of every script for several processes, with no word of where or how many.
MEETS = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo")
met = [None] * dist.get_world_size()
dist.all_gather_object(met, sys.argv[1] + os.environ["LOCAL_RANK"])
if dist.get_rank() == 0:
    print("met", *met, flush=True)
dist.barrier()  # or who ends first takes the store away with which the others still shake hands
dist.destroy_process_group()
"""
ACCELERATES = """
import sys
from accelerate import Accelerator
from accelerate.utils import gather_object
here = Accelerator()
met = gather_object([sys.argv[1]])
if here.is_main_process:
    print("met", *met, flush=True)
here.wait_for_everyone()  # as above
here.end_training()
"""


class Gang:
    """The workers of one try on this machine, each a thread, as the attempt would run them."""

    def __init__(
        self, folder: Path, run: list[str], workers: int, resizes: int = 0, gpus: float = 0, **task: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.workers = [Worker(folder / str(rank), run) for rank in range(workers)]
        members = [{"rank": rank, "memory_bytes": 0, "gpus": gpus} for rank in range(workers)]
        for rank, worker in enumerate(self.workers):
            worker._rank = rank
            worker._order["members"] = members
        order = {**self.workers[0]._order, "spec": {"task": {"run": run, **task}}}
        port = self.workers[0].hold_port()
        self.meeting = Rendezvous.of(order, resizes, ["127.0.0.2"] * workers, port)
        self.endings: dict[int, Ending] = {}

    def start(self) -> Gang:
        self._threads = [threading.Thread(target=self._run, args=(rank,)) for rank in range(len(self.workers))]
        for thread in self._threads:
            thread.start()
        return self

    def _run(self, rank: int) -> None:
        self.endings[rank] = self.workers[rank].run({}, self.meeting)

    def logs(self) -> list[str]:
        """What each worker wrote, once all have ended."""
        for thread in self._threads:
            thread.join(120)
        return [worker._log.path.read_text() for worker in self.workers]

    def met(self) -> list[str]:
        return [line for log in self.logs() for line in log.splitlines() if line.startswith("met")]


def script(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "train.py").write_text(text)
    return str(folder / "train.py")


def test_every_process_is_told_its_place_among_all_and_on_its_worker(tmp_path: Path) -> None:
    gang = Gang(tmp_path, ["python", "-c", WHO], 2, processes_per_worker=2).start()
    places = [[json.loads(line) for line in log.splitlines()] for log in gang.logs()]
    assert sorted(places[0]) == [["0", "4", "0", "2", "0", "0"], ["1", "4", "1", "2", "0", "0"]]
    assert sorted(places[1]) == [["2", "4", "0", "2", "1", "1"], ["3", "4", "1", "2", "1", "1"]]


def test_one_process_alone_is_told_no_rank_as_when_it_is_started_by_hand(tmp_path: Path) -> None:
    assert Gang(tmp_path, ["python", "-c", WHO], 1).start().logs() == ["[null, null, null, null, null, null]\n"]


def test_one_worker_of_an_elastic_gang_is_told_its_rank_at_every_size(tmp_path: Path) -> None:
    gang = Gang(tmp_path, ["python", "-c", WHO], 1)
    order = {**gang.workers[0]._order, "spec": {"task": {"run": ["x"]}, "workers": {"min": 1, "max": 4, "step": 1}}}
    assert Rendezvous.of(order, 0, ["127.0.0.2"], 1).processes_of(0)[0]["RANK"] == "0"


def test_gpus_means_one_process_for_each_gpu_of_a_worker(tmp_path: Path) -> None:
    gang = Gang(tmp_path, ["python", "train.py"], 2, gpus=4.0, processes_per_worker="gpus")
    assert [one["RANK"] for one in gang.meeting.processes_of(1)] == ["4", "5", "6", "7"]


def test_gangs_of_every_launcher_meet_on_one_machine_with_no_flag_and_nobody_elses(tmp_path: Path) -> None:
    meets, accelerates = script(tmp_path / "m", MEETS), script(tmp_path / "a", ACCELERATES)
    gangs = [
        Gang(tmp_path / "1", ["python", meets, "plain"], 2).start(),
        Gang(tmp_path / "2", ["torchrun", meets, "run"], 2, processes_per_worker=2).start(),
        Gang(tmp_path / "3", ["accelerate", "launch", accelerates, "launch"], 2).start(),
    ]
    assert [gang.met() for gang in gangs] == [
        ["met plain0 plain0"],
        ["met run0 run1 run0 run1"],
        ["met launch launch"],
    ], [gang.logs() for gang in gangs]  # "launch" is alone without a GPU, unless it is told
    endings = [ending for gang in gangs for ending in gang.endings.values()]
    assert [ending.code for ending in endings] == [0] * 6, [endings, *(gang.logs() for gang in gangs)]


def test_the_port_where_they_meet_is_nobody_elses_until_a_server_takes_it() -> None:
    held, other = HeldPort(), HeldPort()
    try:
        assert held.number != other.number
        with socket.socket() as stranger, pytest.raises(OSError):
            stranger.bind(("", held.number))
        with socket.create_server(("127.0.0.2", held.number)) as server:  # sets SO_REUSEADDR, as torch's store does
            socket.create_connection(server.getsockname()).close()
    finally:
        held.close()
        other.close()


def test_a_port_that_is_taken_is_told_in_the_programs_own_words(tmp_path: Path) -> None:
    gang = Gang(
        tmp_path, ["python", "-c", "import socket, os; socket.create_server(('', int(os.environ['MASTER_PORT'])))"], 1
    )
    with socket.create_server(("", gang.meeting.port)):
        gang.start().logs()
    assert gang.endings[0].event == "error" and "Address already in use" in gang.endings[0].message


def test_when_one_process_of_a_worker_fails_the_others_are_ended_and_it_is_named(tmp_path: Path) -> None:
    fails = "import os, time; time.sleep(600) if os.environ['RANK'] != '1' else exit(3)"
    gang = Gang(tmp_path, ["python", "-c", fails], 1, processes_per_worker=3).start()
    gang.logs()
    assert (gang.endings[0].code, gang.endings[0].message) == (3, "rank 1: 'python' exited with code 3")


def test_processes_that_share_a_worker_share_its_cpus(tmp_path: Path) -> None:
    gang = Gang(
        tmp_path, ["python", "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], 1, processes_per_worker=2
    )
    gang.workers[0]._order["members"][0]["cpus"] = 6.0
    assert gang.start().logs() == ["3\n3\n"]
