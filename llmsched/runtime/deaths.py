"""Why a worker's process is gone, in words for people: who, on which node, what Ray knows of it, and what kind of
failure that is (`failures.py` names the kinds).

Ray's own words come in many lines, for people who know Ray; the facts in them are found here. They are no promise of
Ray's: `tests/runtime/test_runtime_deaths.py` holds the words of Ray 2.60 for every cause in Ray's own enums, so a Ray
that knows another cause fails it. What is not known is not guessed: then Ray's words are passed on. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from llmsched import sanitize

# "Memory on the node (IP: 10.0.0.1, ID: ab12) was 27.71GB used / 28.80GB limit (0.962273)"; older Rays vary.
_NODE_MEMORY = re.compile(r"Memory on the node .*?was (?:running )?(?:was )?([\d.]+)\s*GB(?: used)? / ([\d.]+)\s*GB")
_OWN_MEMORY = re.compile(r"memory used=([\d.]+)\s*GB")
_EXIT = re.compile(r"Worker exit type: (\w+) Worker exit detail: ([^\n]*)")
_EXIT_CODE = re.compile(r"exit(?:s with an exit| )code[: ]+(-?\d+)", re.IGNORECASE)
_PID = re.compile(r"\bpid: ?(\d+)")
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
# Ray's head of every such text, and lines that say who it was, not why.
_NOT_WHY = re.compile(r"^(\s|(\w+: )?The actor (died|experienced an error) (unexpectedly )?before|$)")


@dataclass(frozen=True)
class Known:
    """What is known beside Ray's words: `node` by name, `exited_with` by `os._exit`, the end of the rank's log."""

    node: str = ""
    pid: int = 0
    exited_with: int | None = None
    log: str = ""


class Death(NamedTuple):
    """`event` is one of error, interruption, no-capacity."""

    message: str
    event: str


class _Cause(NamedTuple):
    """By signs in Ray's words; a group in them is the `{why}` of the sentence."""

    signs: re.Pattern[str]
    sentence: str
    event: str = "interruption"


def _cause(signs: str, sentence: str, event: str = "interruption") -> _Cause:
    return _Cause(re.compile(signs), sentence, event)


# In this order: a text may quote another's cause, as that of an owner's end does.
_CAUSES = (
    _cause(
        "running low on memory|out of memory|OutOfMemory|OUT_OF_MEMORY|oom_context",
        "{process} was ended because the node ran out of memory{figures}",
    ),
    _cause(
        "its owner has died|OWNER_DIED|OwnerDiedError|could not load it during",
        "{process} was ended by Ray, because what had started it is gone",
    ),
    _cause(r"node was terminated(?: \w+)?: ([^\n]+)", "its node{node} went away ({why})"),
    _cause("node has died|NODE_DIED|NodeDiedError", "its node{node} went away"),
    _cause("local raylet died|LocalRayletDied", "Ray's own process on its node{node} is gone"),
    _cause(
        r"killed by `ray\.kill`|RAY_KILL|killed by GCS",  # Ray does not say by whom: work, one of its libraries, or us
        "{process} was ended through Ray (ray.kill)",
    ),
    _cause(r"ray\.cancel|TaskCancelled", "{process} was cancelled by somebody through Ray (ray.cancel)"),
    _cause(
        "references to the actor were removed|OUT_OF_SCOPE|REF_DELETED",
        "{process} was ended by Ray, because nothing referred to it any more",
    ),
    _cause(
        "placement group (?:was|.*has been) removed|PlacementGroupRemoved",
        "its placement group was removed by somebody",
    ),
    _cause(
        r"schedulable: ([^\n]+)|actor_unschedulable_context\s*: ([^\n]+)",
        "Ray could not place it: {why}",
        "no-capacity",
    ),
    _cause("Unschedulable", "Ray could not place it", "no-capacity"),
    _cause(
        r"(?:set up runtime environment|runtime_env_failed_context\s*:)[.\s]*([^\n]*)",
        "Ray could not make the environment of its process: {why}",
        "error",
    ),
    _cause("OutOfDisk|disk's utilization is over", "the disk of its node{node} is full"),
    _cause("ObjectStoreFull", "the object store of its node{node} is full"),
    _cause(
        r"Object(?!RefStreamEnd)\w*Error|ReferenceCounting|PlasmaObject|Failed to retrieve object",
        "what had been passed to it through Ray was lost",
    ),
    _cause("ActorUnavailable", "{process} cannot be reached through Ray"),
    _cause("never ran - it was cancelled", "{process} was cancelled before it had started"),
    _cause(r"System error: ([^\n]+)", "Ray failed: {why}"),
)
_GONE = re.compile("worker process has died|WORKER_DIED|WorkerCrashed|SYSTEM_ERROR|connection error")
_RAISED = re.compile(r"\ARayTaskError|raised in its creation task|creation_task_failure_context")


def explain(who: str, words: str, known: Known) -> Death:
    """One sentence or two. `words` is all that Ray says of it, with the type of its exception before, if it was one."""
    pid = known.pid or pid_in(words)
    process = f"its process{f' {pid}' if pid else ''}{f' on {known.node}' if known.node else ''}"
    sentence, event = _told(words, known, process)
    return Death(f"{who}: {sentence}", event)


def pid_in(words: str) -> int:
    """Of the process that Ray speaks of; 0: it does not say."""
    return int((_PID.search(words) or (0, 0))[1])


def words_of(error: BaseException) -> str:
    """All that an exception of Ray's says, for `explain`."""
    return f"{type(error).__name__}: {sanitize.words(error)}"


def _told(words: str, known: Known, process: str) -> tuple[str, str]:
    if _RAISED.search(words):
        return f"{process} failed: {_last_line(words)}", "error"
    for cause in _CAUSES:
        if found := cause.signs.search(words):
            why = next((each for each in found.groups() if each), "").strip().rstrip(".")
            node = f" {known.node}" if known.node else ""
            return cause.sentence.format(process=process, node=node, why=why, figures=_figures(words)), cause.event
    if known.exited_with is not None:
        return f"{process} left by os._exit({known.exited_with}) before its work had returned", "error"
    if fatal := _FATAL.search(known.log):
        return f"{process} crashed: {fatal[1]}; its log shows where", "error"
    if code := _EXIT_CODE.search(words):
        return f"{process} exited with code {code[1]} before its work had returned", "error"
    found = _EXIT.search(words)
    kind, detail = found.groups() if found else ("", "")
    if kind in ("INTENDED_SYSTEM_EXIT", "INTENDED_USER_EXIT", "USER_ERROR"):
        by_ray = kind == "INTENDED_SYSTEM_EXIT"
        who = "Ray ended it" if by_ray else "it left before its work had returned"
        return f"{process} has ended: {who}: {sanitize.line(detail, 300)}", "interruption" if by_ray else "error"
    if _GONE.search(words):
        return f"{process} was killed: by a signal (kill -9), or by its system for want of memory", "interruption"
    said = next((line.strip() for line in words.splitlines() if not _NOT_WHY.match(line)), "")
    return (
        f"{process} is gone, and Ray says {f'of it: {sanitize.line(said, 300)}' if said else 'not why'}",
        "interruption",
    )


def _last_line(words: str) -> str:
    """Of a traceback: the exception."""
    return sanitize.line(words.strip().splitlines()[-1].strip(), 500)


def _figures(words: str) -> str:
    said = []
    if node := _NODE_MEMORY.search(words):
        said.append(f"{node[1]} of {node[2]} GB were used")
    if own := _OWN_MEMORY.search(words):
        said.append(f"this process used {own[1]} GB")
    return f": {', '.join(said)}" if said else ""
