"""What the scheduler was seen to do, in a word each, read from its journal (`llmsched events --json`).

    seen: [scheduled, {shrank: tone}]       # of expect.yaml: somebody's schedule came due, and tone became smaller

`sights` finds every word in a journal, `check` says of which of those that were asked for it knows nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

WORDS = {
    "adapter_loaded": "a running replica loaded a published adapter",
    "asked": "work asked for a workload of its own, such as a search for a trial",
    "bounded": "its bounds by cron changed how many replicas an endpoint wanted",
    "cleared": "it left GPUs that are reserved, all of its own or some",
    "grew": "a running gang was given more workers",
    "made_room": "it gave GPUs to somebody who is named, whole or in part",
    "moved": "it moved to where it is faster, or so that others fit",
    "node_drained": "an operator emptied a node",
    "node_joined": "a node came after work had begun",
    "node_lost": "a node was lost",
    "preempted": "everything was taken from it, with time to save",
    "published": "a result went to an endpoint that was there",
    "reclaimed": "it gave back quota to the queue that owns it",
    "resumed": "it was started again after it had run",
    "rolled_back": "an endpoint went back to a revision that had answered",
    "rolled_out": "a changed spec took the place of the one before",
    "saved": "a checkpoint was complete",
    "scaled_down": "an endpoint wanted fewer replicas, and not none",
    "scaled_to_zero": "an endpoint wanted none any more",
    "scaled_up": "an endpoint wanted more replicas",
    "scheduled": "a run of a schedule was due",
    "shared_gpu": "two workloads held parts of one GPU at once",
    "shrank": "a running gang gave workers back and went on",
    "stopped_by_budget": "it was stopped as its GPU hours were used up",
    "stopped_by_deadline": "it was stopped as its deadline was over",
    "stopped_by_max_runtime": "it was stopped as it had run for as long as it may",
}
_STOPS = {"budget": "stopped_by_budget", "deadline": "stopped_by_deadline", "max_runtime": "stopped_by_max_runtime"}
_PREEMPTIONS = {
    "quota_reclaim": ("preempted", "reclaimed"), "reservation": ("cleared",), "consolidation": ("moved",),
    "faster_flavor": ("moved",), "superseded": (), "node_drain": ("moved",), "node_lost": (), "stale_gang": (),
}  # fmt: skip


Data = dict[str, Any]
Words = Iterator[tuple[str, str]]  # (word, whose)


class Sight(NamedTuple):
    """`of`: the workload, its name without the run, or the node. `at`: seconds since the journal's first entry."""

    word: str
    of: str
    at: float
    text: str


class Wanted(NamedTuple):
    """A word of expect.yaml; `of` empty: anybody's."""

    word: str
    of: str = ""

    def __str__(self) -> str:
        return f"{self.word} {self.of}".rstrip()


def wanted(asked: Any, where: str) -> list[Wanted]:
    """What stands at `seen`. Raises SystemExit that names what is wrong, and the nearest word."""
    if not isinstance(asked, list) or not all(isinstance(each, str | dict) for each in asked):
        raise SystemExit(f"{where}: seen is a list of words, or {{WORD: NAME}} for one workload's; it is {asked!r}")
    found: list[Wanted] = []
    for each in asked:
        pairs = [(each, "")] if isinstance(each, str) else [*each.items()]
        if any(not isinstance(of, str) for _, of in pairs):
            raise SystemExit(f"{where}: seen: after a word comes the name of a workload or node, not {pairs[0][1]!r}")
        found += [Wanted(str(word), of) for word, of in pairs]
    for word, _ in found:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, 1)
            hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(WORDS)}."
            raise SystemExit(f'{where}: seen: no word "{word}". {hint}')
    return found


def check(asked: Iterable[Wanted], found: Iterable[Sight]) -> tuple[dict[str, list[Sight]], list[str]]:
    """What was asked for with where it was seen, and what was not seen."""
    there = [*found]
    known = {
        str(one): [each for each in there if each.word == one.word and one.of in ("", each.of)] for one in asked
    }  # fmt: skip
    return {name: some for name, some in known.items() if some}, [name for name, some in known.items() if not some]


def sights(events: Iterable[dict[str, Any]]) -> list[Sight]:
    """Of a whole journal, oldest first."""
    watch, found, began = _Watch(), [], None
    for event in events:
        began = event["at"] if began is None else began
        for word, of in watch.look(event):
            found.append(Sight(word, of.partition("@")[0], round(event["at"] - began, 1), event["text"]))
    return found


class _Watch:
    """What has to be remembered of earlier entries, to say what the next one means."""

    def __init__(self) -> None:
        self._held: dict[str, list[dict[str, Any]]] = {}  # gang -> its placement
        self._replicas: dict[str, int] = {}  # endpoint -> what it wants
        self._nodes: dict[str, str] = {}  # id -> name
        self._ran = False

    def look(self, event: Data) -> Words:
        look = self._LOOKS.get(event["kind"])
        if look is not None:
            yield from look(self, event["data"], event.get("workload") or "", event.get("gang") or "")

    def _submitted(self, data: Data, name: str, gang: str) -> Words:
        if data["replaces"]:
            yield "rolled_out", name
        else:
            self._replicas[name] = data["workload"]["min_replicas"]
            if data["workload"].get("parent"):
                yield "asked", data["workload"]["parent"]

    def _run_again(self, data: Data, name: str, gang: str) -> Words:
        if not data["why"]:
            yield "scheduled", name

    def _node_joined(self, data: Data, name: str, gang: str) -> Words:
        node = data["node"]
        self._nodes[node["id"]] = node["name"] or node["id"]
        if self._ran:
            yield "node_joined", self._nodes[node["id"]]

    def _node_lost(self, data: Data, name: str, gang: str) -> Words:
        yield "node_lost", self._nodes.get(data["node"], data["node"])

    def _drain_begun(self, data: Data, name: str, gang: str) -> Words:
        yield "node_drained", self._nodes.get(data["node"], data["node"])

    def _launch(self, data: Data, name: str, gang: str) -> Words:
        self._ran = True
        if data["attempt"] > 1:
            yield "resumed", name
        yield from self._holds(gang, name, data["placement"])

    def _resize(self, data: Data, name: str, gang: str) -> Words:
        before = len(self._held.get(gang, ()))
        if len(data["placement"]) < before:
            yield "shrank", name
        elif len(data["placement"]) > before:
            yield "grew", name
        if data["beneficiary"]:
            yield "made_room", name
        if (data.get("why") or {}).get("code") == "resize.reservation":
            yield "cleared", name
        yield from self._holds(gang, name, data["placement"])

    def _holds(self, gang: str, name: str, placement: list[dict[str, Any]]) -> Words:
        parts = {(one["node"], one["gpu_index"]) for one in placement if one["gpu_index"] >= 0}
        for other, there in self._held.items():
            if other.rpartition("/")[0] != name and parts & {(one["node"], one["gpu_index"]) for one in there}:
                yield "shared_gpu", name
                yield "shared_gpu", other.rpartition("/")[0]
        self._held[gang] = placement

    def _preempt(self, data: Data, name: str, gang: str) -> Words:
        for word in _PREEMPTIONS.get(data["reason"], ("preempted",)):
            yield word, name
        if data["beneficiary"]:
            yield "made_room", name

    def _stop(self, data: Data, name: str, gang: str) -> Words:
        if data["reason"] in _STOPS:
            yield _STOPS[data["reason"]], name

    def _scale(self, data: Data, name: str, gang: str) -> Words:
        before, now = self._replicas.get(name, 0), data["replicas"]
        self._replicas[name] = now
        if now != before:
            yield ("scaled_up" if now > before else "scaled_down" if now else "scaled_to_zero"), name
            if (data.get("why") or {}).get("code") == "scale.bounds":
                yield "bounded", name

    def _published(self, data: Data, name: str, gang: str) -> Words:
        if data["is_taken"] and data["target"] != data["origin"]:
            yield "published", name

    def _adapter_loaded(self, data: Data, name: str, gang: str) -> Words:
        if not data["message"]:
            yield "adapter_loaded", name

    def _gone(self, data: Data, name: str, gang: str) -> Words:
        self._held.pop(gang, None)
        return iter(())

    _LOOKS: ClassVar[dict[str, Callable[[_Watch, Data, str, str], Words]]] = {
        "Submitted": _submitted,
        "RolledBack": lambda self, data, name, gang: iter([("rolled_back", name)]),
        "RunAgain": _run_again,
        "NodeJoined": _node_joined,
        "NodeLost": _node_lost,
        "DrainBegun": _drain_begun,
        "Launch": _launch,
        "Resize": _resize,
        "Preempt": _preempt,
        "Stop": _stop,
        "Scale": _scale,
        "Published": _published,
        "AdapterLoaded": _adapter_loaded,
        "CheckpointPublished": lambda self, data, name, gang: iter([("saved", name)]),
        "Finished": _gone,
        "Released": _gone,
        "Lost": _gone,
        "LaunchFailed": _gone,
    }
