"""Ray's Jobs API on the wire, and what a job is here: a `kind: ray` workload. Start reading at `spec_of`.

A job begins once, as under Ray: when its program fails it has failed. What befalls it from outside (a node that is
lost, a preemption) is no failure of its own, and it begins again. What a job asks for and cannot have is refused by
name, with what to write instead.
"""

from __future__ import annotations

import math
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from llmsched.errors import Problem, SpecError
from llmsched.spec import load
from llmsched.spec.http_requests import Request
from llmsched.spec.ray import SHELL, RaySpec, Words, name_of_job

API_VERSION = "4"  # of Ray's own Jobs API, which its clients look at
PACKAGE = re.compile(r"gcs://(_ray_pkg_[A-Za-z0-9_.-]{1,150}\.zip)")
ACCELERATOR_LABEL = "ray.io/accelerator-type"
OURS = "llmsched."  # keys of metadata that are for us, beside `queue`
_LETTERS = string.ascii_lowercase + string.digits

Amount = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class JobSubmitRequest(Request):
    """As Ray's own, `ray.job_submission.JobSubmissionClient.submit_job`. Memory is in bytes."""

    entrypoint: Annotated[str, Field(min_length=1, max_length=131_072)]
    submission_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    job_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None  # its name before Ray 2.0
    runtime_env: dict[str, Any] | None = None
    metadata: Annotated[dict[Words, Words], Field(max_length=64)] | None = None
    entrypoint_num_cpus: Amount | None = None
    entrypoint_num_gpus: Amount | None = None
    entrypoint_memory: Annotated[int, Field(ge=0, le=2**60)] | None = None
    entrypoint_resources: dict[str, Amount] | None = None
    entrypoint_label_selector: dict[str, str] | None = None


class JobSubmitResponse(BaseModel):
    job_id: str
    submission_id: str


class JobStopResponse(BaseModel):
    stopped: bool


class JobDeleteResponse(BaseModel):
    deleted: bool


class JobLogsResponse(BaseModel):
    logs: str


class VersionResponse(BaseModel):
    version: str = API_VERSION
    ray_version: str


Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
STATUS: dict[str, Status] = {
    "waiting": "PENDING",
    "starting": "PENDING",
    "running": "RUNNING",
    "resizing": "RUNNING",
    "stopping": "RUNNING",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "STOPPED",
}


class JobDetails(BaseModel):
    """Stamps are milliseconds since 1970. `message` says why it waits, or how it ended."""

    type: Literal["SUBMISSION"] = "SUBMISSION"
    submission_id: str
    status: Status
    entrypoint: str
    message: str
    start_time: int
    end_time: int | None = None
    metadata: dict[str, str] = {}
    runtime_env: dict[str, Any] = {}


def new_id() -> str:
    return "raysubmit-" + "".join(secrets.choice(_LETTERS) for _ in range(16))


# --- what was submitted -> a spec -----------------------------------------------------------------------------------


def spec_of(
    asked: JobSubmitRequest, flavors: Sequence[str], sha256_of: Callable[[str], str | None]
) -> tuple[str, RaySpec]:
    """(its id, the spec). `flavors`: of the cluster's GPUs, for a job that names none. `sha256_of` a package that was
    uploaded. Raises SpecError that names all that is not taken."""
    problems: list[Problem] = []
    submission_id = asked.submission_id or asked.job_id or new_id()
    metadata = asked.metadata or {}
    spec: dict[str, Any] = {
        "name": name_of_job(submission_id),
        "kind": "ray",
        "queue": metadata.get("queue", "default"),
        "retry": {"on_events": ["no-capacity", "interruption"]},
        "resources": _resources(asked, flavors, problems),
        "ray": {"run": [*SHELL, asked.entrypoint], "job": {"id": submission_id, "metadata": metadata}},
        **_wishes(metadata, problems),
        **_surroundings(asked.runtime_env or {}, sha256_of, problems),
    }
    found = None
    try:
        found = load.load_json(spec, "job")
    except SpecError as error:
        problems += (one._replace(where=_as_asked(one.where)) for one in error.problems)
    if problems:
        raise SpecError.of(problems)
    assert isinstance(found, RaySpec)
    return submission_id, found


_PLACES = {  # of a spec -> of what was submitted
    "job.resources.cpus": "entrypoint_num_cpus",
    "job.resources.memory": "entrypoint_memory",
    "job.resources.accelerators": "entrypoint_num_gpus",
    "job.resources.custom": "entrypoint_resources",
    "job.environment.pip": "runtime_env.pip",
    "job.envs": "runtime_env.env_vars",
    "job.workdir": "runtime_env.working_dir",
    "job.queue": "metadata.queue",
    "job.workers": "metadata.llmsched.workers",
    "job.priority": "metadata.llmsched.priority",
    "job.secrets": "metadata.llmsched.secrets",
    "job.ray.run": "entrypoint",
    "job.ray.job.id": "submission_id",
    "job.ray.job.metadata": "metadata",
}


def _as_asked(where: str) -> str:
    for ours, theirs in _PLACES.items():
        if where == ours or where.startswith((ours + ".", ours + "[")):
            return theirs + where.removeprefix(ours)
    return where


def _resources(asked: JobSubmitRequest, flavors: Sequence[str], problems: list[Problem]) -> dict[str, Any]:
    """Of the one node that its Ray begins with: it holds the entrypoint and whatever that starts."""
    labels = dict(asked.entrypoint_label_selector or {})
    wanted = labels.pop(ACCELERATOR_LABEL, "")
    for name in labels:
        hint = f"{ACCELERATOR_LABEL} is; where a workload runs is else for the scheduler to choose."
        problems.append(Problem(f"entrypoint_label_selector.{name}", "is not supported", hint))
    found: dict[str, Any] = {"cpus": float(max(1, math.ceil(asked.entrypoint_num_cpus or 0)))}
    if asked.entrypoint_memory:
        found["memory"] = asked.entrypoint_memory
    if asked.entrypoint_resources:
        found["custom"] = {name: amount for name, amount in asked.entrypoint_resources.items() if amount}
    gpus = asked.entrypoint_num_gpus or 0
    if not gpus and wanted:
        gpus = 1
    if gpus != int(gpus):
        problems.append(Problem("entrypoint_num_gpus", f"a Ray of its own has whole GPUs, got {gpus:g}", "Ask for 1."))
    elif gpus:
        kinds = [wanted] if wanted else list(flavors)[:16]
        found["accelerators"] = [f"{flavor}:{int(gpus)}" for flavor in kinds]
        if not kinds:
            hint = f'Name one: entrypoint_label_selector {{"{ACCELERATOR_LABEL}": "A100"}}.'
            problems.append(Problem("entrypoint_num_gpus", "this cluster has no GPU of any kind now", hint))
    return found


def _wishes(metadata: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    """`llmsched.workers`, `llmsched.priority` and `llmsched.secrets` (NAME,NAME) of the metadata."""
    found: dict[str, Any] = {}
    for name, text in metadata.items():
        if not name.startswith(OURS):
            continue
        field = name.removeprefix(OURS)
        if field not in ("workers", "priority", "secrets"):
            known = f"There are queue and {OURS}workers, priority, secrets; all other keys are kept as they are."
            problems.append(Problem(f"metadata.{name}", "is not known", known))
        elif field == "secrets":
            found[field] = [each.strip() for each in text.split(",") if each.strip()]
        else:
            found[field] = int(text) if re.fullmatch("[0-9]{1,6}", text, re.ASCII) else text
    return found


_PIP = "write pip: [...], which is installed on top of the cluster's Python"
_INSTEAD = {
    "conda": _PIP,
    "container": _PIP,
    "image_uri": _PIP,
    "py_executable": _PIP,
    "py_modules": "put the modules into the working_dir, from which they are imported everywhere",
    "worker_process_setup_hook": "call it at the beginning of the program's tasks and actors, or in ray.init",
    "java_jars": "a workload is a Python program or a command",
}


def _surroundings(
    runtime_env: Mapping[str, Any], sha256_of: Callable[[str], str | None], problems: list[Problem]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in runtime_env.items():
        where = f"runtime_env.{name}"
        if value is None or name in ("excludes", "config", "_ray_commit"):
            continue  # its client has packed by the first; the others are about how Ray itself would prepare it
        if name == "env_vars":
            found["envs"] = value
        elif name in ("pip", "uv"):
            found["environment"] = {"pip": _packages(where, value, problems)}
        elif name == "working_dir":
            found["workdir"] = _workdir(where, value, sha256_of, problems)
        else:
            hint = _INSTEAD.get(name, "working_dir, pip, uv and env_vars are taken")
            problems.append(Problem(where, "is not supported", f"{hint[0].upper()}{hint[1:]}."))
    return {name: value for name, value in found.items() if value is not None}


def _packages(where: str, value: Any, problems: list[Problem]) -> Any:
    """Of `["x"]`, or of what Ray's client makes of it: {"packages": ["x"], "pip_check": false}."""
    if not isinstance(value, dict):
        return value
    usual: dict[str, Any] = {"pip_check": False, "uv_check": False, "uv_pip_install_options": ["--no-cache"]}
    for name, given in value.items():
        if name != "packages" and given is not None and given != usual.get(name, []):
            problems.append(Problem(f"{where}.{name}", "is not supported", "Only packages are taken."))
    return value.get("packages") or []


def _workdir(where: str, value: Any, sha256_of: Callable[[str], str | None], problems: list[Problem]) -> str | None:
    match = PACKAGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        hint = "Name a folder on your machine, which Ray's client uploads."
        problems.append(Problem(where, "is no folder that was uploaded as gcs://_ray_pkg_....zip", hint))
        return None
    sha256 = sha256_of(match[1])
    if sha256 is None:
        problems.append(
            Problem(where, f"{match[1][:60]} has not been uploaded, or is not kept any more", "Submit it again.")
        )
        return None
    return f"sha256:{sha256}"


def runtime_env_of(spec: RaySpec, *, shows_values: bool) -> dict[str, Any]:
    """What is told of it. `shows_values`: of its environment variables, to whoever may change it."""
    found: dict[str, Any] = {}
    if spec.envs:
        found["env_vars"] = dict(spec.envs) if shows_values else dict.fromkeys(spec.envs, "***")
    if spec.environment.pip:
        found["pip"] = list(spec.environment.pip)
    if spec.workdir:
        found["working_dir"] = spec.workdir
    return found
