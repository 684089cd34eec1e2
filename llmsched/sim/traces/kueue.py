"""Jobs from Kueue: what `kubectl get workloads -A -o json` prints.

A workload's run is from `Admitted` to `Finished`; its GPUs are pods times `nvidia.com/gpu` (or `amd.com/gpu`).
Workloads that never ran or asked for no GPU are counted and left out. Knows no scheduler.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from llmsched.errors import SpecError
from llmsched.sim.traces.job import Job
from llmsched.sim.traces.slurm import Imported

GPUS = ("nvidia.com/gpu", "amd.com/gpu")


def parse(text: str, name: str) -> Imported:
    """Times become seconds since the first submission. Raises SpecError naming the item."""
    try:
        items = json.loads(text)["items"]
        if not isinstance(items, list):
            raise TypeError('"items" is not a list')
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SpecError(
            f"is not a list of Kueue workloads: {error}.",
            where=name,
            code="bad_trace",
            hint="Print it with: kubectl get workloads -A -o json",
        ) from None
    found: list[tuple[float, float, int, dict[str, Any], int]] = []
    left_out: dict[str, int] = {}
    for number, item in enumerate(items):
        where = f"{name}: items[{number}]"
        try:
            submit = _stamp(item["metadata"]["creationTimestamp"])
            gpus = sum(int(pods.get("count", 1)) * _gpus(pods) for pods in item["spec"]["podSets"])
            conditions = (item.get("status") or {}).get("conditions") or ()
            times = {  # whoever was evicted and waits again has `Admitted` with status False
                each["type"]: _stamp(each["lastTransitionTime"])
                for each in conditions
                if each.get("status", "True") == "True"
            }
            priority = int(item["spec"].get("priority") or 0)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SpecError(f"is not a Kueue workload: {error!r}.", where=where, code="bad_trace") from None
        admitted, finished = times.get("Admitted"), times.get("Finished")
        why = "" if gpus else "no GPU"
        if admitted is None:
            why = "never started"
        elif finished is None:
            why = "still running"
        elif finished <= admitted:
            why = "ran for no time"
        if why:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        assert admitted is not None and finished is not None
        found.append((submit, finished - admitted, gpus, item, min(max(priority, 0), 100)))
    if not found:
        raise SpecError("no workload in it ran on a GPU.", where=name, code="bad_trace")
    first = min(submit for submit, *_ in found)
    jobs = [
        Job(
            id=f"{item['metadata'].get('namespace', 'default')}/{item['metadata']['name']}",
            submit_s=submit - first,
            gpus=gpus,
            runtimes=((gpus, seconds),),
            queue=item["spec"].get("queueName") or "default",
            priority=priority,
        )
        for submit, seconds, gpus, item, priority in found
    ]
    return Imported(sorted(jobs, key=lambda job: job.submit_s), left_out)


def _stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _gpus(pods: dict[str, Any]) -> int:
    """GPUs of one pod of a pod set: the larger of its requests and limits."""
    total = 0
    for container in pods["template"]["spec"]["containers"]:
        resources = container.get("resources", {})
        total += max(int(resources.get(kind, {}).get(gpu, 0)) for kind in ("requests", "limits") for gpu in GPUS)
    return total
