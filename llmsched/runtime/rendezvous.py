"""Where the processes of one gang meet, and the variables that tell each who it is: as torchrun sets them.

A worker is to torch what torchrun calls a node: it sees its own GPUs only, so LOCAL_RANK counts its processes, whoever
else works on the same machine. The variables PET_* are torchrun's own defaults for its options.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from llmsched.spec import launchers


class HeldPort:
    """A free port of this machine that nobody gets by chance, until `close`.

    It is bound and does not listen. The kernel gives it to no connection and to nobody who asks for any port; a server
    that sets SO_REUSEADDR before it binds it, as torch's does, can have it at any moment."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class Rendezvous(NamedTuple):
    """Of one try. `id`: of the attempt and its size, other than those of all before."""

    id: str
    address: str  # of worker 0
    port: int  # held there
    addresses: tuple[str, ...]  # of every worker, in their order
    per_worker: int  # processes
    has_launcher: bool  # the command starts the processes of its worker
    is_alone: bool  # one process, and never more: a script that tests RANK is to behave as by hand

    @classmethod
    def of(cls, order: dict[str, Any], resizes: int, addresses: Sequence[str], port: int) -> Rendezvous:
        """`order` is the LaunchOrder as JSON data, `addresses` are those of its members."""
        spec, gpus = order["spec"], order["members"][0].get("gpus", 0.0)
        asked = spec["task"].get("processes_per_worker", 1)
        per_worker = max(1, int(gpus)) if asked == "gpus" else int(asked)
        most = (spec.get("workers") or {}).get("max", len(addresses))
        return cls(
            f"{order['gang']}/{order['attempt']}/{resizes}".replace("/", "-"),
            addresses[0],
            port,
            tuple(addresses),
            per_worker,
            launchers.starts_processes(spec["task"]["run"], gpus),
            most == len(addresses) == per_worker == 1,
        )

    def processes_of(self, worker: int) -> list[dict[str, str]]:
        """The variables of each process that a worker starts."""
        return [self._envs(worker, local) for local in range(1 if self.has_launcher else self.per_worker)]

    def _envs(self, worker: int, local: int) -> dict[str, str]:
        rank, workers = worker * self.per_worker + local, len(self.addresses)
        # To a torchrun that nobody could see in the command, each of several processes is a node of its own.
        nodes, per_node, node = (workers, self.per_worker, worker)
        if not self.has_launcher:
            nodes, per_node, node = workers * self.per_worker, 1, rank
        place = {
            "RANK": rank,
            "WORLD_SIZE": workers * self.per_worker,
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": self.per_worker,
            "NODE_RANK": worker,
            "GROUP_RANK": worker,
            "GROUP_WORLD_SIZE": workers,
        }
        meeting = {
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
            "PET_NNODES": nodes,
            "PET_NPROC_PER_NODE": per_node,
            "PET_NODE_RANK": node,
            "PET_MASTER_ADDR": self.address,
            "PET_MASTER_PORT": self.port,
            "PET_RDZV_ENDPOINT": f"{self.address}:{self.port}",
            "PET_RDZV_ID": self.id,
            "PET_LOCAL_ADDR": self.addresses[worker],
        }
        return {name: str(text) for name, text in (meeting if self.is_alone else place | meeting).items()}
