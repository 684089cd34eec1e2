"""Free ports for servers that are started a moment later, by another process.

Below those that the kernel gives to connections: one of them may be somebody's, for as long as a connection lasts, by
the time the server binds it.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

from llmsched.errors import ClusterError

LOWEST = 20_000  # below it Ray's own fixed ports and those of its workers
TRIED = 1000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int, host: str = "") -> list[int]:
    """That many different ones that nobody listens on at `host` ("": any address). Raises ClusterError."""
    chance = random.SystemRandom()
    found: list[int] = []
    for _ in range(TRIED):
        if len(found) == count:
            return found
        port = chance.randrange(LOWEST, _first_of_connections())
        if port not in found and is_free(port, host):
            found.append(port)
    raise ClusterError("there are no free ports on this machine.", code="port_in_use")


def is_free(port: int, host: str = "") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))  # Ray binds some of its ports on every address
        except OSError:
            return False
        return True


def _first_of_connections() -> int:
    try:
        first = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        first = 32_768
    return first if first > LOWEST + TRIED else 65_536
