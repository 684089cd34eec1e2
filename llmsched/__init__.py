"""llmsched: an elastic cluster scheduler on Ray. The public names; each is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Client": "llmsched.client.client",
    "AsyncClient": "llmsched.client.core",
    "load": "llmsched.spec.load",
    "WorkloadSpec": "llmsched.spec.workload",
    "TrainSpec": "llmsched.spec.train",
    "ServeSpec": "llmsched.spec.serve",
    "BatchSpec": "llmsched.spec.batch",
    "TuneSpec": "llmsched.spec.tune",
    "TaskSpec": "llmsched.spec.task",
    "ClusterSpec": "llmsched.spec.cluster",
    "LlmschedError": "llmsched.errors",
    "SpecError": "llmsched.errors",
    "RequestError": "llmsched.errors",
    "NotAllowed": "llmsched.errors",
    "ClusterError": "llmsched.errors",
    "StoreError": "llmsched.errors",
    "Bug": "llmsched.errors",
}
__all__ = [*_HOMES]

if TYPE_CHECKING:
    from llmsched.client.client import Client as Client
    from llmsched.client.core import AsyncClient as AsyncClient
    from llmsched.errors import Bug as Bug
    from llmsched.errors import ClusterError as ClusterError
    from llmsched.errors import LlmschedError as LlmschedError
    from llmsched.errors import NotAllowed as NotAllowed
    from llmsched.errors import RequestError as RequestError
    from llmsched.errors import SpecError as SpecError
    from llmsched.errors import StoreError as StoreError
    from llmsched.spec.batch import BatchSpec as BatchSpec
    from llmsched.spec.cluster import ClusterSpec as ClusterSpec
    from llmsched.spec.load import load as load
    from llmsched.spec.serve import ServeSpec as ServeSpec
    from llmsched.spec.task import TaskSpec as TaskSpec
    from llmsched.spec.train import TrainSpec as TrainSpec
    from llmsched.spec.tune import TuneSpec as TuneSpec
    from llmsched.spec.workload import WorkloadSpec as WorkloadSpec


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("llmsched.versions").own()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
