"""Reads scenario files: which words a row may say, what is wrong with a row, and the records that its rows mean.

Knows the words of the format and how they map onto the core's records; plays nothing (scenarios.py) and judges nothing
(verdict.py). A row with a mistake is named with its key and is not run; the other rows of the file are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llmsched.core.configuration import (
    Cohort,
    Configuration,
    PolicyNames,
    PreemptionRules,
    Queue,
    Quota,
    Reservation,
    Scheduling,
)
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources, parse_gpus_milli
from llmsched.core.rules import FAIR_RULES
from llmsched.core.workload import Group, Option, Topology, Workload
from llmsched.errors import SpecError
from llmsched.spec.validation import nearest

PLAIN = PolicyNames(ordering="priority", elasticity="even")  # scenarios test rules; taste is measured elsewhere
START = 1_000_000.0  # the stamp that a scenario calls 0
NAME_LABEL = "llmsched.io/node-name"  # a job that names its node asks for this label
PLENTY = 1 << 50  # CPUs and memory of a node that does not say

NUMBER = (int, float)
JOB = {
    "name": str, "queue": str, "user": str, "prio": int, "gpus": NUMBER, "cpu": NUMBER, "memory_gib": NUMBER,
    "members": int, "min_members": int, "max_members": int, "members_running": int, "gpus_per_member": NUMBER,
    "node": (str, list), "nodes": list, "gpu_index": int, "spread": bool, "copies": int, "ends_in_s": NUMBER,
    "preemptible": bool, "stale_for_s": NUMBER, "created_at": NUMBER, "started_at": NUMBER, "flavor": (str, list),
    "flavors": list, "time_limit_s": NUMBER, "topology": dict, "single_node": bool, "labels": dict,
    "min_runtime_s": NUMBER,
}  # fmt: skip
LIMIT = (int, float, dict)
WORDS: dict[str, dict[str, Any]] = {
    "policy": {
        "order": ("priority", "strict_fifo", "best_effort"),
        "fifo_scope": ("per_queue", "per_flavor"),
        "preempt_within_queue": ("never", "lower_priority", "lower_or_newer_equal_priority"),
        "reclaim": ("never", "lower_priority", "equal_or_lower_priority", "any"),
        "preempt_while_borrowing": ("never", "lower_priority"),
        "preempt_while_borrowing_max_victim_prio": int,
        "preempt": object,
        "preemption_delay_s": NUMBER, "reclaim_min_runtime_s": NUMBER, "stale_gang_grace_s": NUMBER,
        "fair_share": ("weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"),
        "fair_preempt_rule": (*FAIR_RULES,),
        "preempt_to_fair_share": bool, "protected_fraction": NUMBER, "drf_resources": list, "k": NUMBER,
        "usage_half_life_s": NUMBER, "window_s": NUMBER, "elastic": bool, "consolidation": bool,
        "fractional_gpu": bool, "backfill": ("off", "easy", "conservative"), "time_resolution_s": NUMBER,
    },
    "nodes": {
        "name": str, "gpus": NUMBER, "cpu": NUMBER, "memory_gib": NUMBER, "flavor": str, "rack": object, "zone": object,
        "region": object, "copies": int, "labels": dict,
    },
    "queues": {
        "name": str, "parent": str, "guaranteed": LIMIT, "borrow_limit": LIMIT, "lend_limit": LIMIT, "max": LIMIT,
        "weight": NUMBER, "overquota_weight": NUMBER, "evictable": ("yes", "prefer_not", "no", True, False),
    },
    "running": JOB,
    "pending": JOB,
    "reservations": {
        "name": str, "nodes": list, "flavor": str, "gpus": NUMBER, "queue": str, "users": list, "starts_in_s": NUMBER,
        "duration_s": NUMBER, "repeat": str,
    },
    "expect": {
        "start": list, "evict": list, "keep": list, "wait": list, "final_members": dict, "final_usage": dict,
        "final_running": dict, "migrate_count": int, "placement": dict, "placement_domain": dict,
        "planned_start_in_s": dict, "reason": (str, dict), "explain": dict, "held_gpus": NUMBER, "computed_share": dict,
        "total_evictions_max": int,
    },
}  # fmt: skip
STEP = ("at_s", "submit", "run_cycles", "add_node", "remove_node", "expect")
LARGEST = 4 << 20  # characters
PROSE = ("why", "note", "origin", "tier")
ROW = (
    "id", "policy", "nodes", "queues", "running", "pending", "reservations", "history", "expect", "steps", "then",
    "variant", *PROSE,
)  # fmt: skip
VARIANT = (*ROW, *STEP, "if_running_preemptible")


def read(path: str | Path) -> list[Any]:
    """The rows of a scenario file; SpecError when it is none."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
        document = yaml.safe_load(text) if len(text) <= LARGEST else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as wrong:
        raise SpecError(f"cannot read scenarios: {wrong}", where=str(path)) from wrong
    if document is None and len(text) > LARGEST:
        raise SpecError(f"is larger than {LARGEST >> 20} MiB.", where=str(path), code="too_large")
    if not isinstance(document, dict) or not isinstance(document.get("scenarios"), list):
        raise SpecError('a scenario file has a list called "scenarios"', where=str(path))
    rows: list[Any] = document["scenarios"]
    return rows


# ---------------------------------------------------------------------- what is wrong with a row


def problems(row: Any, ids: Iterable[str] = ()) -> list[str]:
    """Sentences, each with the key that is wrong. `ids` are those of the rows before it."""
    if not isinstance(row, dict):
        return [f"a scenario is a mapping, not {_kind(row)}"]
    found: list[str] = []
    if not isinstance(row.get("id"), str):
        found.append("id: every scenario has a name of its own")
    elif row["id"] in ids:
        found.append("id: another scenario of this file is called the same")
    found += _unknown("", row, ROW)
    found += _sections(row)
    variants = row.get("variant") or []
    for variant in [variants] if isinstance(variants, dict) else variants:
        if not isinstance(variant, dict):
            found.append(f"variant: a mapping, not {_kind(variant)}")
        else:
            found += _unknown("variant", variant, VARIANT) + _sections(variant, "variant ")
    found += _steps(row.get("steps")) if "steps" in row else []
    if isinstance(row.get("then"), dict):
        found += _unknown("then", row["then"], ("pending", *STEP, *PROSE)) + _sections(row["then"], "then ")
    elif "then" in row:
        found.append(f"then: a mapping, not {_kind(row['then'])}")
    return found or _names(row)


def _sections(row: Mapping[str, Any], inside: str = "") -> list[str]:
    found: list[str] = []
    for section, words in WORDS.items():
        if row.get(section) is None:
            continue
        value = row[section]
        if section in ("policy", "expect"):
            found += _entry(f"{inside}{section}", value, words)
        elif not isinstance(value, list):
            found.append(f"{inside}{section}: a list, not {_kind(value)}")
        else:
            for entry in value:
                found += _entry(f"{inside}{section}", entry, words)
    return found


def _entry(where: str, entry: Any, words: Mapping[str, Any]) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{where}: a mapping, not {_kind(entry)}"]
    name = entry.get("name")
    where = f'{where} "{name}"' if isinstance(name, str) else where
    found = _unknown(where, entry, words if "name" in words else (*words, *PROSE))
    if "name" in words and not isinstance(name, str):
        found.append(f"{where}: name: every entry has a name")
    for key, value in entry.items():
        wanted = words.get(key)
        if wanted is None or value is None:
            continue
        if isinstance(wanted, tuple) and isinstance(wanted[0], str):
            if (_backfill(value) if key == "backfill" else value) not in wanted:
                close = nearest(str(value), [str(word) for word in wanted])
                found.append(
                    f"{where}: {key}: {value!r} is none of {', '.join(str(w) for w in wanted if isinstance(w, str))}"
                    + (f'. Did you mean "{close}"?' if close else "")
                )
        elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted in (int, NUMBER)):
            found.append(f"{where}: {key}: {_words_for(wanted)}, not {_kind(value)}")
        elif isinstance(value, NUMBER) and value < 0 and key not in MAY_BE_NEGATIVE:
            found.append(f"{where}: {key}: {value:g} is negative")
    least, most = entry.get("min_members", 0), entry.get("max_members", entry.get("members"))
    if isinstance(least, int) and isinstance(most, int) and least > most:
        found.append(f"{where}: min_members: {least} is more than the {most} there may be")
    return found


MAY_BE_NEGATIVE = ("prio", "created_at", "started_at", "starts_in_s", "preempt_while_borrowing_max_victim_prio")


def _steps(steps: Any) -> list[str]:
    if not isinstance(steps, list):
        return [f"steps: a list, not {_kind(steps)}"]
    found: list[str] = []
    for number, step in enumerate(steps, 1):
        if not isinstance(step, dict):
            found.append(f"step {number}: a mapping, not {_kind(step)}")
            continue
        found += _unknown(f"step {number}", step, (*STEP, *PROSE))
        for section, key in (("pending", "submit"), ("nodes", "add_node")):
            given = step.get(key) or []
            for entry in given if isinstance(given, list) else [given]:
                found += _entry(f"step {number} {key}", entry, WORDS[section])
        if step.get("expect") is not None:
            found += _entry(f"step {number} expect", step["expect"], WORDS["expect"])
    return found


def _names(row: Mapping[str, Any]) -> list[str]:
    """Names that a row uses and nothing has. The shape of the row is right when this is called."""
    variants = row.get("variant") or []
    views = [row, *({**row, **v} for v in ([variants] if isinstance(variants, dict) else variants))]
    return [*dict.fromkeys(problem for view in views for problem in _unknown_names(view))]


def _unknown_names(view: Mapping[str, Any]) -> Iterator[str]:
    queues = [queue["name"] for queue in view.get("queues") or [{"name": "default"}]]
    parents = {queue["name"]: queue.get("parent") for queue in view.get("queues") or []}
    steps = view.get("steps") or []
    nodes = {name for node in (*(view.get("nodes") or []), *_listed(steps, "add_node")) for name in node_names(node)}
    then = (view.get("then") or {}).get("pending") or []
    pending = [*(view.get("pending") or []), *_listed([*steps, view], "submit"), *then]
    jobs = [("running", job) for job in view.get("running") or []] + [("pending", job) for job in pending]
    yield from _ring(parents)
    for section, job in jobs:
        yield from _unknown_in_job(f'{section} "{job["name"]}"', job, queues, {*parents.values()}, nodes)
    for reservation in view.get("reservations") or []:
        yield from _unknown_in_reservation(reservation, queues, nodes)
    for name in view.get("history") or {}:
        if name not in queues:
            yield f'history: no queue "{name}"'
    job_names = {job["name"] for _, job in jobs}
    for expect in (view.get("expect"), *(step.get("expect") for step in steps)):
        for key in ("start", "evict", "keep", "wait"):
            for name in (expect or {}).get(key) or []:
                if str(name).partition(":")[0] not in job_names:
                    yield f'expect: {key}: no job "{name}"'


def _unknown_in_job(
    where: str, job: Mapping[str, Any], queues: Sequence[str], cohorts: Collection[str | None], nodes: Collection[str]
) -> Iterator[str]:
    queue = job.get("queue", "default")
    if queue not in queues:
        close = nearest(queue, queues)
        yield f'{where}: queue: no queue "{queue}"' + (f'. Did you mean "{close}"?' if close else "")
    elif queue in cohorts:
        yield f'{where}: queue: "{queue}" has queues below it and holds no work itself'
    named = job.get("node", job.get("nodes")) or []
    for node in [named] if isinstance(named, str) else named:
        if node not in nodes:
            yield f'{where}: node: no node "{node}"'


def _unknown_in_reservation(
    reservation: Mapping[str, Any], queues: Sequence[str], nodes: Collection[str]
) -> Iterator[str]:
    where = f'reservations "{reservation["name"]}"'
    for node in reservation.get("nodes") or []:
        if node not in nodes:
            yield f'{where}: nodes: no node "{node}"'
    if reservation.get("queue", "") and reservation["queue"] not in queues:
        yield f'{where}: queue: no queue "{reservation["queue"]}"'


def _ring(parents: Mapping[str, str | None]) -> list[str]:
    for name in parents:
        above, passed = parents[name], [name]
        while above is not None:
            if above in passed:
                return [f'queues "{name}": parent: the cohorts form a ring']
            passed.append(above)
            above = parents.get(above)
    return []


def _listed(steps: Iterable[Mapping[str, Any]], key: str) -> Iterator[Mapping[str, Any]]:
    for step in steps:
        given = step.get(key) or []
        yield from given if isinstance(given, list) else [given]


def _unknown(where: str, given: Mapping[str, Any], words: Iterable[str]) -> list[str]:
    known = [*words]
    found = []
    for key in given:
        if key not in known:
            close = nearest(str(key), known)
            found.append(
                f'{where + ": " if where else ""}unknown key "{key}"' + (f'. Did you mean "{close}"?' if close else "")
            )
    return found


def _kind(value: Any) -> str:
    return {
        dict: "a mapping",
        list: "a list",
        str: f"the text {value!r}",
        bool: "yes or no",
        type(None): "nothing",
    }.get(type(value), f"the number {value}")


def _words_for(wanted: Any) -> str:
    names = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        dict: "a mapping",
        list: "a list",
        bool: "yes or no",
    }
    if wanted == NUMBER:
        return "a number"
    return " or ".join(
        names[kind] for kind in (wanted if isinstance(wanted, tuple) else (wanted,)) if kind is not float
    )


# ---------------------------------------------------------------------- rows -> records


def varied(scenario: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """The same scenario with the named changes and the variant's own expectation."""
    changed = {key: value for key, value in scenario.items() if key not in ("variant", "then", "expect")}
    changes = dict(variant)
    if "if_running_preemptible" in changes:
        flag = changes.pop("if_running_preemptible")
        changed["running"] = [{**job, "preemptible": flag} for job in scenario.get("running", [])]
    if "at_s" in changes:  # the change happens on the way: keep the steps before it
        at = changes.pop("at_s")
        before = [step for step in scenario.get("steps", []) if step.get("at_s", 0) < at]
        step = {"at_s": at, "expect": changes.pop("expect", {})}
        step.update({key: changes.pop(key) for key in STEP if key in changes})
        changed["steps"] = [*before, step]
    if isinstance(changes.get("policy"), dict):
        changes["policy"] = {**(scenario.get("policy") or {}), **changes["policy"]}
    changed.update(changes)
    return changed


def node_names(row: Mapping[str, Any]) -> list[str]:
    """name, or name-0, name-1 ... of several copies."""
    return [f"{row['name']}-{copy}" for copy in range(row["copies"])] if "copies" in row else [row["name"]]


def nodes(row: Mapping[str, Any]) -> list[Node]:
    labels = tuple((key, str(row[key])) for key in ("rack", "zone", "region") if key in row)
    labels += tuple((str(key), str(value)) for key, value in (row.get("labels") or {}).items())
    total = Resources(
        parse_gpus_milli(row.get("gpus", 0)),
        int(row["cpu"] * MILLI) if "cpu" in row else PLENTY,
        int(row["memory_gib"] * (1 << 30)) if "memory_gib" in row else PLENTY,
    )
    return [Node(name, total, row.get("flavor"), ((NAME_LABEL, name), *labels), name) for name in node_names(row)]


def workloads(row: Mapping[str, Any], known: Mapping[str, Any], waits: bool = False) -> list[Workload]:
    """Those of one row: `copies` of them, the first one called as in the file when there is one only. `known`: ids that
    are taken (C1 calls a queue's jobs after it). One that waits and names its node will have no other."""
    per_bundle = Resources(
        parse_gpus_milli(row.get("gpus_per_member", row.get("gpus", 0))),
        int(row.get("cpu", 0) * MILLI),
        int(row.get("memory_gib", 0) * (1 << 30)),
    )
    flavors = row.get("flavor", row.get("flavors"))
    flavors = flavors if isinstance(flavors, list) else [flavors]
    most = row.get("max_members", row.get("members", row.get("min_members", 1)))
    wish = row.get("topology") or {}
    wanted = dict(row.get("labels") or {})
    if waits and isinstance(row.get("node"), str):
        wanted[NAME_LABEL] = row["node"]
    made: list[Workload] = []
    for name in node_names(row):
        if name in known:
            name = f"{name}.{len(known) + len(made)}"
        made.append(
            Workload(
                id=name,
                name=name,
                kind="train",
                groups=(Group("workers", 1, tuple(Option(flavor, per_bundle) for flavor in flavors)),),
                queue=row.get("queue", "default"),
                user=row.get("user", ""),
                priority=row.get("prio", 0),
                min_size=row.get("min_members", row.get("members", most)),
                max_size=most,
                topology=Topology("node" if row.get("single_node") else wish.get("required"), wish.get("preferred")),
                node_labels=tuple(sorted((str(k), str(v)) for k, v in wanted.items())),
                preemptible=row.get("preemptible", True),
                min_runtime_s=row.get("min_runtime_s", 0.0),
                max_runtime_s=row.get("time_limit_s"),
                grace_s=0.0,
            )
        )
    return made


def configuration(scenario: Mapping[str, Any]) -> Configuration:
    policy = scenario.get("policy") or {}
    rows = scenario.get("queues") or [{"name": "default"}]
    parents = {row["parent"] for row in rows if row.get("parent")}
    listed = {row["name"] for row in rows}
    limited = any(key in row for row in rows for key in ("guaranteed", "max", "borrow_limit", "lend_limit"))
    queues = tuple(_queue(row, limited) for row in rows if row["name"] not in parents)
    cohorts = tuple(
        Cohort(row["name"], row.get("parent"), _quotas(row), float(row.get("weight", 1.0)))
        for row in rows
        if row["name"] in parents
    ) + tuple(Cohort(name) for name in sorted(parents - listed))
    shorthand = "lower_priority" if policy.get("preempt") not in (None, False, "never", "off") else "never"
    rules = PreemptionRules(  # the shorthand: by priority, within the queue and from whoever borrows
        policy.get("preempt_within_queue", shorthand),
        policy.get("reclaim", shorthand),
        policy.get("preempt_while_borrowing", shorthand),
        policy.get("preempt_while_borrowing_max_victim_prio"),
    )
    scheduling = Scheduling(
        order=policy.get("order", "priority"),
        fifo_scope=policy.get("fifo_scope", "per_queue"),
        backfill=_backfill(policy.get("backfill", "off")),
        preemption=rules,
        preemption_delay_s=policy.get("preemption_delay_s", 0.0),
        reclaim_min_runtime_s=policy.get("reclaim_min_runtime_s", 0.0),
        stale_gang_grace_s=policy.get("stale_gang_grace_s", 0.0),
        fair_share=policy.get("fair_share"),
        fair_preempt_rule=policy.get("fair_preempt_rule"),
        preempt_to_fair_share=policy.get("preempt_to_fair_share", False),
        protected_fraction=policy.get("protected_fraction", 0.0),
        drf_resources=tuple(policy.get("drf_resources", ("gpu",))),
        usage_half_life_s=policy.get("usage_half_life_s", 0.0),
        usage_k=policy.get("k", 0.0),
        usage_window_s=policy.get("window_s", 0.0),
        elastic=policy.get("elastic", False),
        consolidation=policy.get("consolidation", False),
        time_resolution_s=policy.get("time_resolution_s", 1.0),
    )
    reservations = tuple(_reservation(row) for row in scenario.get("reservations") or [])
    return Configuration(1, queues, cohorts, reservations, scheduling=scheduling, policies=PLAIN)


def _backfill(value: Any) -> str:
    return "off" if value in (False, None) else str(value)  # YAML reads a bare `off` as false


def _queue(row: Mapping[str, Any], limited: bool) -> Queue:
    evictable = row.get("evictable", "yes")
    return Queue(
        row["name"],
        row.get("parent"),
        _quotas(row) if limited else (),
        weight=float(row.get("weight", 1.0)),
        overquota_weight=float(row["overquota_weight"]) if "overquota_weight" in row else None,
        evictable={True: "yes", False: "no"}.get(evictable, evictable),
    )


def _quotas(row: Mapping[str, Any]) -> tuple[tuple[str, Quota], ...]:
    """One number for all flavors, or a number for each; a flavor that a limit does not name has no such limit."""
    keys = ("guaranteed", "borrow_limit", "lend_limit", "max")
    flavors = [*dict.fromkeys(name for key in keys if isinstance(row.get(key), Mapping) for name in row[key])] or ["*"]

    def of(key: str, flavor: str) -> int | None:
        value = row.get(key)
        value = value.get(flavor) if isinstance(value, Mapping) else value
        return None if value is None else parse_gpus_milli(value)

    made = []
    for flavor in flavors:
        own = of("guaranteed", flavor) or 0
        borrow = of("borrow_limit", flavor)
        most = of("max", flavor)
        if most is not None:
            borrow = min(most - own, borrow) if borrow is not None else most - own
        made.append((flavor, Quota(own, borrow, of("lend_limit", flavor))))
    return tuple(made)


def _reservation(row: Mapping[str, Any]) -> Reservation:
    return Reservation(
        row["name"],
        START + row.get("starts_in_s", 0),
        row.get("duration_s", 0),
        queue=row.get("queue"),
        users=tuple(row.get("users") or ()),
        flavor=row.get("flavor"),
        gpus_milli=parse_gpus_milli(row.get("gpus", 0)),
        nodes=tuple(row.get("nodes") or ()),
        repeat=row.get("repeat"),
    )
