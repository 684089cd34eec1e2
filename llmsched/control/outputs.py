"""Folders that batches write into: one is of one run. Two that write into the same would mix their answers, and one
that follows its input would answer its own answers for ever."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from llmsched.control.authorization import Permissions
from llmsched.control.lookup import spec_of
from llmsched.core.state import State
from llmsched.core.workload import Workload
from llmsched.errors import RequestError

_HINT = "Name a folder of its own for each run, or leave output out: then the answers are the result of the run."


def check(state: State, workload: Workload, file: Sequence[Workload], permissions: Permissions) -> None:
    """Raises RequestError where another batch, of the file before this one or that has not ended, writes into the
    same folder, above it or below it. Of what the person may not see nothing is said: the run itself finds what lies
    there."""
    mine = _output(workload)
    if not mine:
        return
    _check_input(workload, mine)
    in_file = {one.id for one in file}
    before = file[: next(place for place, one in enumerate(file) if one.id == workload.id)]
    open_ones = (record.workload for record in state.workloads.values() if not record.outcome)
    for other in (*before, *(one for one in open_ones if one.id not in in_file and permissions.sees(one))):
        theirs = _output(other)
        if theirs and (_holds(mine, theirs) or _holds(theirs, mine)):
            where = "there" if mine == theirs else f"into {theirs}"
            raise RequestError(
                f"batch.output {mine}: {other.id} writes {where}, and the answers of both would be mixed.",
                code="output_taken",
                hint=_HINT,
            )


def _check_input(workload: Workload, output: str) -> None:
    batch = spec_of(workload)["batch"]
    path = batch["input"]["path"]
    place = _plain(path)
    if place == output or batch.get("follow") and _reads(place, f"{output}/part-000000.{batch['format']}"):
        raise RequestError(
            f"batch.output {output} is among what is read ({path}): its own answers would be rows"
            + (", and their answers again, for ever." if batch.get("follow") else "."),
            code="output_taken",
            hint="Name a folder that batch.input.path does not hold.",
        )


def _output(workload: Workload) -> str:
    """Where a batch writes, as it is compared; ""."""
    if workload.kind != "batch" or '"output":null' in workload.parcel:  # canonical JSON; most name none
        return ""
    output = (spec_of(workload).get("batch") or {}).get("output")
    return _plain(output) if output else ""


def _plain(place: str) -> str:
    if place.startswith("s3://"):
        return place.rstrip("/")
    if place.startswith("file://"):
        place = unquote(urlsplit(place).path)
    return posixpath.normpath(place)


def _holds(above: str, below: str) -> bool:
    return (below + "/").startswith(above.rstrip("/") + "/")


def _reads(place: str, name: str) -> bool:
    """Whether a file, a folder or a pattern takes the file `name`. Of a folder what begins with "_" or "." is no
    data."""
    if not re.search(r"[*?[]", place):
        inside = name[len(place.rstrip("/")) + 1 :] if _holds(place, name) else "_"
        return not any(part.startswith(("_", ".")) for part in inside.split("/"))
    words = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = "".join(words.get(each, re.escape(each)) for each in re.split(r"(\*\*/|\*\*|\*|\?)", place))
    return re.fullmatch(pattern, name) is not None
