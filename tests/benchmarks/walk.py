"""How long the way of one `llmsched apply` is: what one small task passes through, from the command line to its start.

    python tests/benchmarks/walk.py [--files] > walk.json

Prints one JSON object. Client, API, controller and a fake executor run in this process, and every call of a function of
llmsched is seen. `files`: those entered. `hand_overs`: pairs of files of which one calls into the other; what libraries
call in between is left out. `spec`: how often the spec is parsed, compiled and written as data, by client and
controller together. The first apply of another task goes before, so that what is done once is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from live import Live, live  # noqa: E402

ROOT = str(Path(__file__).parents[2] / "llmsched") + os.sep
SPEC = """\
name: {name}
kind: task
resources: {{accelerators: "A100:1"}}
task: {{run: ["true"]}}
"""
STEPS = {
    "parsed": ("spec/validation.py:validate", "spec/parcel.py:parse"),
    "compiled": ("spec/compile.py:compile_workload",),
    "dumped": ("spec/section.py:Section.dump",),
}


class Walk:
    """What is called between `begin` and `end`, in threads that begin after `__init__`."""

    def __init__(self) -> None:
        self.hand_overs: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[str] = Counter()
        self._is_on = False
        threading.setprofile(self._event)

    def begin(self) -> None:
        self._is_on = True
        sys.setprofile(self._event)

    def end(self) -> None:
        self._is_on = False
        sys.setprofile(None)
        threading.setprofile(None)

    @property
    def files(self) -> list[str]:
        return sorted({call.partition(":")[0] for call in self.calls})

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        if event != "call" or not self._is_on or not _is_ours(frame):
            return
        file = _file(frame)
        self.calls[f"{file}:{frame.f_code.co_qualname}"] += 1
        caller = frame.f_back
        while caller is not None and not _is_ours(caller):
            caller = caller.f_back
        if caller is not None and _file(caller) != file:
            self.hand_overs[_file(caller), file] += 1


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(ROOT) and frame.f_code.co_name != "<module>"


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.removeprefix(ROOT)


def apply(system: Live, name: str) -> None:
    """As the command line does, until the task runs."""
    from llmsched.cli.main import cli

    file = system.home / f"{name}.yaml"
    file.write_text(SPEC.format(name=name))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli(["apply", "-f", str(file)], standalone_mode=False)
    pause = threading.Event()
    while (gang := system.controller.state.gangs.get(f"{name}/0")) is None or gang.started_at is None:
        pause.wait(0.01)


def walk() -> Walk:
    found = Walk()
    with tempfile.TemporaryDirectory(prefix="llms") as folder, live(Path(folder)) as system:
        os.environ |= {"LLMSCHED_ADDRESS": system.url, "LLMSCHED_TOKEN": system.token}
        apply(system, "before")
        found.begin()
        apply(system, "walked")
        found.end()
    return found


def spec_steps(found: Walk) -> dict[str, int]:
    """How often the spec was parsed, compiled and dumped."""
    return {step: sum(found.calls[function] for function in functions) for step, functions in STEPS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="say which, and who calls whom how often")
    options = parser.parse_args()
    found = walk()
    result: dict[str, Any] = {"files": len(found.files), "hand_overs": len(found.hand_overs)}
    result["spec"] = spec_steps(found)
    if options.files:
        result["calls"] = {f"{a} -> {b}": count for (a, b), count in sorted(found.hand_overs.items())}
        result["entered"] = found.files
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
