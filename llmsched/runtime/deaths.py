"""Why a worker's process is gone, in words for people: who, on which node, and what Ray knows of it.

Ray's own words come in many lines, for people who know Ray; the facts in them are found here. They are no promise of
Ray's: `tests/runtime/test_runtime_deaths.py` holds the sentences that Ray 2.60 writes. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# "Memory on the node (IP: 10.0.0.1, ID: ab12) was 27.71GB used / 28.80GB limit (0.962273)"; older Rays vary.
_NODE_MEMORY = re.compile(r"Memory on the node .*?was (?:running )?(?:was )?([\d.]+)\s*GB(?: used)? / ([\d.]+)\s*GB")
_OWN_MEMORY = re.compile(r"memory used=([\d.]+)\s*GB")
_OUT_OF_MEMORY = ("running low on memory", "out of memory", "OutOfMemory")
_NODE_DIED = re.compile(r"actor's node was terminated(?: \w+)?: ([^\n]+)")
_EXIT_CODE = re.compile(r"exit(?:s with an exit| )code[: ]+(-?\d+)", re.IGNORECASE)
_PID = re.compile(r"\bpid: ?(\d+)")
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Known:
    """What is known beside Ray's words: `node` by name, `exited_with` by `os._exit`, the end of the rank's log."""

    node: str = ""
    pid: int = 0
    exited_with: int | None = None
    log: str = ""


def explain(who: str, words: str, known: Known) -> str:
    """One sentence or two. `words` is all that Ray says of it."""
    pid = known.pid or int((_PID.search(words) or (0, 0))[1])
    process = f"its process{f' {pid}' if pid else ''}{f' on {known.node}' if known.node else ''}"
    if any(sign in words for sign in _OUT_OF_MEMORY):
        return f"{who}: {process} was ended because the node ran out of memory{_figures(words)}"
    if (died := _NODE_DIED.search(words)) or "node has died" in words:
        why = f" ({died[1].strip().rstrip('.')})" if died else ""
        return f"{who}: its node{f' {known.node}' if known.node else ''} went away{why}"
    if known.exited_with is not None:
        return f"{who}: {process} left by os._exit({known.exited_with}) before its work had returned"
    if fatal := _FATAL.search(known.log):
        return f"{who}: {process} crashed: {fatal[1]}; its log shows where"
    if code := _EXIT_CODE.search(words):
        return f"{who}: {process} exited with code {code[1]} before its work had returned"
    return f"{who}: {process} was killed: by a signal (kill -9), or by its system for want of memory"


def _figures(words: str) -> str:
    said = []
    if node := _NODE_MEMORY.search(words):
        said.append(f"{node[1]} of {node[2]} GB were used")
    if own := _OWN_MEMORY.search(words):
        said.append(f"this process used {own[1]} GB")
    return f": {', '.join(said)}" if said else ""
