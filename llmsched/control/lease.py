"""One controller writes. Who starts takes the lease when its owner is surely dead, or has shown no life for a while.

Only monotonic time is used, and only one's own: a lease whose renewal count does not move for `LEASE_S` on this
process' clock is over, whatever any wall clock says. What a stopped process then still tries, the fence refuses.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from llmsched.control.clock import Clock
from llmsched.errors import StoreError
from llmsched.store.journal import Store

LEASE_S = 10.0
RENEW_EVERY_S = LEASE_S / 4


async def take(store: Store, clock: Clock, owner: str) -> int:
    """The new epoch. Raises StoreError (`already_running`) when the owner of the lease lives."""
    seen = store.lease()
    if seen.owner and not is_dead(seen.owner):
        until = clock.monotonic() + LEASE_S
        while clock.monotonic() < until:
            await clock.sleep(RENEW_EVERY_S / 5)
            if store.lease() != seen:
                raise StoreError(
                    f"another controller ({seen.owner}) runs from this store",
                    code="already_running",
                    hint="Use it, or stop it first: llmsched down.",
                )
    return store.take_over(owner, seen)


def this_process() -> str:
    """host/boot/pid/start: names this process for as long as the store lives."""
    return "/".join((socket.gethostname(), _boot_id(), str(os.getpid()), _started(os.getpid())))


def is_dead(owner: str) -> bool:
    """True only when it is certain: a process of this host that is gone, or of an earlier boot of it."""
    parts = owner.split("/")
    if len(parts) != 4 or parts[0] != socket.gethostname() or not parts[1]:
        return False
    if parts[1] != _boot_id():
        return True
    return _started(int(parts[2])) != parts[3]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """In clock ticks since boot; "" when there is no such process (or it is a zombie, which does nothing more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
