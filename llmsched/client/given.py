"""Specs as a client is given them, files or data, as models. The kinds are imported when there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmsched import sanitize
from llmsched.errors import SpecError


def load_file(file: Path) -> list[Any]:
    """The workload specs of a YAML file. Raises SpecError, also when it cannot be read."""
    from llmsched.spec import load

    return load.load(read_file(file), str(file))


def read_file(file: Path) -> bytes:
    """What stands in a spec or cluster file, and of one that is too large, or without end, so much that whoever reads
    it sees that. Raises SpecError when there is none."""
    from llmsched.spec.document import MAX_BYTES

    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"cannot read {file}: {error.strerror}.", code="no_file") from None


def checked(spec: Any) -> Any:
    """One workload. Raises SpecError."""
    from llmsched.spec import load
    from llmsched.spec.workload import WorkloadSpec

    if isinstance(spec, WorkloadSpec):
        return spec
    try:
        data = sanitize.asked(json.dumps(spec))
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"a spec is JSON data: {error}.", hint="Write a file, a dict, or a model of llmsched.spec."
        ) from None
    return load.load_json(data)
