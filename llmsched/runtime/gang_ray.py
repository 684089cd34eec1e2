"""The Ray of a task's own: `ray.init()` in its command meets one that has what the gang was given, and nothing else.

It comes up when somebody asks for it: worker 0 listens at the address that all commands find in RAY_ADDRESS, and who
connects there first has every worker start a node beside itself (`private_ray.py`). So tasks that use no Ray pay for
none, and what is made through Ray waits where the gang is full. Start reading at `Door`.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray

from llmsched.channels import PIECE
from llmsched.ray_start import RAY
from llmsched.runtime import own_ray_worker
from llmsched.runtime.packages import Packages
from llmsched.runtime.private_ray import COMES_UP_WITHIN_S, RayNode, Share

_CONNECTS_WITHIN_S = 10.0
# A driver waits for what comes up only now: Ray's own bounds are for one that is there. Seconds.
_PATIENCE = {
    "RAY_gcs_rpc_server_connect_timeout_s": COMES_UP_WITHIN_S,
    "RAY_py_gcs_connect_timeout_s": COMES_UP_WITHIN_S,
}


def envs_of(address: str, token: str) -> dict[str, str]:
    """With which a command finds it. Ray reads them, whatever address a program leaves open."""
    patience = {name: str(int(seconds)) for name, seconds in _PATIENCE.items()}
    return {**patience, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def own(envs: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the Ray in which this process is a worker: its address, its token, its job."""
    return {name: text for name, text in envs.items() if not name.startswith("RAY_")}


def node(
    member: Mapping[str, Any], token: str, envs: Mapping[str, str], packages: Packages | None, store: int = 0
) -> RayNode:
    """Of the size of a member (as JSON data) of a LaunchOrder, on this machine; not started yet."""
    python = sys.executable if packages is None else str(packages.bin / "python")
    program = [python, *RAY]  # of this Python, or the same seen from the packages
    return RayNode(token, Share.of(member, _labels(), store), {**envs, **own_ray_worker.ENVS}, program)


def address_here() -> str:
    return str(ray.util.get_node_ip_address())


def _labels() -> dict[str, str]:
    """Of the machine's node in the shared Ray."""
    here = ray.get_runtime_context().get_node_id()
    return next((dict(one.get("Labels") or {}) for one in ray.nodes() if one["NodeID"] == here), {})


class Door:
    """Listens at `address` until `close`. `start` is called once, when somebody connects first, and returns the address
    behind the door (HOST:PORT), or "": there will be none, and whoever connects is sent away."""

    def __init__(self, ip: str, start: Callable[[], str]) -> None:
        self._start = start
        self._behind = ""
        self._is_wanted, self._is_decided, self._is_closed = (threading.Event() for _ in range(3))
        self._listening = socket.create_server((ip, 0))
        self.address = f"{ip}:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._bring_up, daemon=True, name="behind the door").start()
        threading.Thread(target=self._answer, daemon=True, name="door").start()

    def close(self) -> None:
        self._is_closed.set()
        self._is_wanted.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # `accept` returns
        self._listening.close()

    def _bring_up(self) -> None:
        """In a thread that lives as long as the door: processes end with the thread that has started them."""
        self._is_wanted.wait()
        if not self._is_closed.is_set():
            try:
                self._behind = self._start()
            finally:
                self._is_decided.set()
        self._is_closed.wait()

    def _answer(self) -> None:
        while True:
            try:
                comer, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._let_in, args=(comer,), daemon=True).start()

    def _let_in(self, comer: socket.socket) -> None:
        with comer:
            self._is_wanted.set()
            self._is_decided.wait()
            if not self._behind:
                return
            host, _, port = self._behind.rpartition(":")
            try:
                with socket.create_connection((host, int(port)), _CONNECTS_WITHIN_S) as there:
                    there.settimeout(None)
                    back = threading.Thread(target=_pass_on, args=(there, comer), daemon=True)
                    back.start()
                    _pass_on(comer, there)
                    back.join()
            except OSError:
                return  # it is gone, or he is


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(PIECE):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
