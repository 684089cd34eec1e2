"""Makes a snapshot: folds the journal up to an entry, as a start would, and spells the state that this gives.

    python -m llmsched.control.snapshot_maker STORE SEQ     prints the digest and, after a line end, the bytes

That takes a second of CPU for some thousands of gangs. So the controller has a process of its own do it, of a low
priority, which reads the store beside it: the loop and whoever asks it notice nothing. Start reading at `in_process`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from llmsched.control import recovery
from llmsched.control.archive import Rows, StoreArchive
from llmsched.core.archive import Archive
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.errors import Bug, LlmschedError, StoreError
from llmsched.store import snapshots
from llmsched.store.reading import moment_of
from llmsched.store.tables import SnapshotRow

LONGEST_S = 600.0  # on a machine that is busy with other things: then without one
NICE = 10

Make = Callable[[int, float], Awaitable[SnapshotRow]]  # of that entry, at that time; raises LlmschedError


class Journal(recovery.Journal, Rows, Protocol): ...


def in_process(store: Path) -> Make:
    """By a process that reads the store and changes nothing. It is ended when nobody waits for it any more."""

    async def make(seq: int, at: float) -> SnapshotRow:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "llmsched.control.snapshot_maker", str(store), str(seq)),
            stdin=asyncio.subprocess.PIPE,  # open as long as this process lives: see leave_with_parent
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(LONGEST_S):
                said, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
                await process.wait()
        except TimeoutError:
            raise StoreError(f"it was not made within {LONGEST_S:g} s", code="snapshot") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise StoreError(errors.decode(errors="replace").strip() or f"exit {process.returncode}", code="snapshot")
        digest, _, body = said.partition(b"\n")
        return SnapshotRow(seq, at, digest.decode(), body)

    return make


def in_thread(store: Journal) -> Make:
    """For a store that no other process can read."""

    async def make(seq: int, at: float) -> SnapshotRow:
        return await asyncio.to_thread(folded, store, seq, at)

    return make


def folded(journal: Journal, seq: int, at: float) -> SnapshotRow:
    """Raises StoreError, or Bug."""
    archive = StoreArchive(journal)
    state, last, _ = recovery.fold_all_that_can(journal, archive, seq)
    if last != seq:
        raise Bug(f"entry {seq} is not there: the last one is {last}")
    return spelled(state, archive, seq, at)


def spelled(state: State, archive: Archive, seq: int, at: float) -> SnapshotRow:
    """With the digest of the state. Raises Bug when the bytes do not give that state: then it is not to be kept."""
    digest, body = state.digest(), snapshots.dump(freeze(state))
    if thaw(snapshots.load(body), archive).digest() != digest:
        raise Bug(f"the snapshot of entry {seq} does not give the state it was made of")
    return SnapshotRow(seq, at, digest, body)


def leave_with_parent() -> None:
    """A controller that is killed takes its maker with it: the next one will want one of its own."""

    def wait_for_the_end() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()


def main(store: str, seq: str) -> int:
    os.nice(NICE)
    leave_with_parent()
    try:
        with moment_of(Path(store)) as moment:
            made = folded(moment, int(seq), 0.0)
    except LlmschedError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(made.digest.encode() + b"\n" + made.body)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
