"""Programs around Ray, and a loop of one's own, on real Ray: whole on one worker, whole on two, preempted once on one.

Rows of `bring_anything.py`, which prints them. Each is submitted to a controller of its own on a local Ray of three
nodes with a pretend GPU each. To preempt one, urgent work that wants all GPUs is submitted while it is in the middle.
Those of the installed Ray run from there; `figure` reads from the run what is compared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from llmsched.client import Client
from llmsched.errors import LlmschedError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HERE = EXAMPLES / "11_bring_anything"
WITHIN_S = 420.0  # machines may be busy
CLUSTER = {
    "queues": [{"name": "default", "quota": {"A100": {"nominal": 3}}}],
    "scheduling": {"preemption": {"within_queue": "lower_priority"}},
}
URGENT = {
    "name": "urgent", "kind": "task", "priority": 90, "workers": 3, "resources": {"accelerators": "A100:1", "cpus": 0},
    "task": {"run": ["true"]},
}  # fmt: skip
ONE = {"accelerators": "A100:1", "cpus": 1, "memory": "1GB"}

Figure = float | str
WAYS = {"whole on 1": 1, "whole on 2": 2, "preempted": 1}  # workers


class Program(NamedTuple):
    """`submit(client, name, workers)`; `is_amid(client, name)`: far enough to be preempted; `figure(client, name)`: to
    what it came. `within`: how far a figure may be from that of one worker that nobody disturbs, relative."""

    lines: int
    submit: Callable[[Client, str, int], None]
    is_amid: Callable[[Client, str], bool]
    figure: Callable[[Client, str], Figure]
    within: float = 0.0
    resumes: bool = True


def applied(kind: str, section: dict[str, Any], folder: Path = HERE) -> Callable[[Client, str, int], None]:
    def submit(client: Client, name: str, workers: int) -> None:
        spec = {"name": name, "kind": kind, "priority": 20, "workers": workers, "resources": ONE, kind: section}
        with chdir(folder):
            client.apply([spec | {"workdir": "."}])

    return submit


def endpoint(client: Client, name: str, workers: int) -> None:
    spec = {"name": name, "kind": "serve", "priority": 20, "replicas": workers, "resources": ONE}
    with chdir(EXAMPLES / "09_a_serve_app"):
        client.apply([spec | {"workdir": ".", "serve": {"app": "desk:app"}}])


def job(client: Client, name: str, workers: int) -> None:
    """By Ray's own command."""
    told = {"queue": "default", "llmsched.workers": str(workers), "llmsched.priority": "20"}
    env = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    token = (Path(os.environ["LLMSCHED_HOME"]) / "token").read_text().strip()
    env |= {"RAY_API_SERVER_ADDRESS": client.url, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    words = ["job", "submit", "--no-wait", "--submission-id", name, "--working-dir", str(EXAMPLES / "08_a_ray_program")]
    words += ["--entrypoint-num-gpus", "1", "--entrypoint-num-cpus", "1", "--metadata-json", json.dumps(told)]
    ray = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run(
        [ray, *words, "--", "python", "pi.py", "600"], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Went(done.stdout + done.stderr)


def log(client: Client, name: str) -> str:
    return "\n".join(line.text for line in client.logs(name, tail=1_000))


def has_said(pattern: str) -> Callable[[Client, str], bool]:
    return lambda client, name: client.status(name).phase == "running" and bool(re.search(pattern, log(client, name)))


def has_reported(step: int) -> Callable[[Client, str], bool]:
    return lambda client, name: int(client.status(name).progress.get("step") or 0) >= step


def runs(client: Client, name: str) -> bool:
    return client.status(name).phase == "running"


def said(pattern: str) -> Callable[[Client, str], Figure]:
    def figure(client: Client, name: str) -> Figure:
        found = re.findall(pattern, log(client, name))
        if not found:
            raise Went(f"{name} never said {pattern}")
        return _figure(found[-1])

    return figure


def _figure(text: str) -> Figure:
    try:
        return float(text)
    except ValueError:
        return text


def loss(client: Client, name: str) -> Figure:
    return client.status(name).metrics["loss"]


def answer(client: Client, name: str) -> Figure:
    """Of the endpoint, once all its replicas answer; then it ends."""
    until(lambda: client.status(name).size == client.status(name).wanted)
    token = (Path(os.environ["LLMSCHED_HOME"]) / "token").read_text().strip()
    where = f"{client.health().urls['endpoint']}/v1/apps/{name}/judge?text=good%20enough"
    found = httpx.post(where, headers={"authorization": f"Bearer {token}"}, timeout=60).raise_for_status().json()
    client.cancel(name)
    return float(found["score"])


RAY_TRAIN = ["python", "-m", "ray.train.examples.pytorch.torch_linear_example", "--use-gpu", "--num-workers"]
TUNE = ["python", "-m", "ray.tune.examples.tune_basic_example", "--smoke-test"]


def linear(client: Client, name: str, workers: int) -> None:
    applied("ray", {"run": [*RAY_TRAIN, str(workers)]})(client, name, workers)


PROGRAMS: dict[str, Program] = {
    "own-loop": Program(
        5,
        applied(
            "train",
            {"loop": "spirals:loop", "config": {"steps": 6000, "lr": 0.003, "global_batch_size": 64}},
            EXAMPLES / "02_bring_your_own_loop",
        ),
        has_reported(200),
        loss,
        within=0.02,
    ),
    "nano": Program(
        0,
        applied("task", {"run": ["torchrun", "nano.py"]}),
        has_said(r"step 30:"),
        said(r"answer ([\d.]+)"),
        within=0.05,
    ),
    "ray-train-loop": Program(
        0,
        applied("train", {"loop": "ray_train:trainer", "config": {"epochs": 200, "lr": 0.002}}),
        has_reported(15),
        loss,
        within=0.02,
    ),
    "ray-train": Program(0, linear, has_said("worker group"), lambda *_: "ends", resumes=False),
    "ray-tune": Program(
        0,
        applied("ray", {"run": TUNE}),
        has_said("[Tt]rial"),
        lambda client, name: "ends" if "Best hyperparameters" in log(client, name) else "lost",
        resumes=False,
    ),
    "ray-data": Program(
        0,
        applied("ray", {"run": ["python", "ray_data.py"]}),
        has_said("[Ee]xecution"),
        said(r"sum (\d+)"),
        resumes=False,
    ),
    "ray-serve": Program(0, endpoint, runs, answer),
    "ray-job-submit": Program(0, job, has_said("nodes,"), said(r"pi is about ([\d.]+)"), within=0.02, resumes=False),
}


@contextmanager
def house() -> Iterator[Client]:
    """A controller and a Ray of its own; they end."""
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        os.environ["LLMSCHED_HOME"] = str(Path(folder) / "home")
        Path(folder).chmod(0o711)
        cluster = Path(folder) / "cluster.yaml"
        cluster.write_text(json.dumps(CLUSTER))
        llmsched("up", "--nodes", "3x1:A100", "--config", str(cluster))
        try:
            with Client() as client:
                yield client
        finally:
            llmsched("down")


def llmsched(*words: str) -> None:
    command = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Went(Exception):
    """Otherwise than it should; the message says how."""


def row(client: Client, name: str) -> dict[str, Any]:
    """One that fails is a row too, and the others follow."""
    found: dict[str, Figure] = {}
    try:
        said = _tried(client, name, found)
    except (Went, LlmschedError, httpx.HTTPError) as error:
        said = f"failed: {str(error).splitlines()[0]}"
        print(f"{name}: {error}", file=sys.stderr)
        for one in client.workloads().workloads:
            if not one.ended:
                client.cancel(one.name)
        until(lambda: all(one.ended for one in client.workloads().workloads))
    figures = {label: found.get(label, "-") for label in WAYS}
    return {"program": name, "lines": PROGRAMS[name].lines, **figures, "verdict": said}


def _tried(client: Client, name: str, found: dict[str, Figure]) -> str:
    program, cut = PROGRAMS[name], f"{name}-preempted"
    undisturbed = {label: f"{name}-{workers}" for label, workers in WAYS.items() if label != "preempted"}
    for label, run in undisturbed.items():  # side by side
        program.submit(client, run, WAYS[label])
    for label, run in undisturbed.items():
        until(lambda run=run: ended(client, run))
        found[label] = program.figure(client, run)
    program.submit(client, cut, WAYS["preempted"])
    until(lambda: program.is_amid(client, cut) or ended(client, cut))
    client.apply([URGENT], again=True).wait(WITHIN_S)
    until(lambda: ended(client, cut))
    found["preempted"] = program.figure(client, cut)
    return verdict(program, found, max(one.attempt for one in client.status(cut).gangs))


def ended(client: Client, name: str) -> bool:
    """Well, or runs as an endpoint does."""
    view = client.status(name)
    if view.phase in ("failed", "cancelled"):
        raise Went(f"{name}: {view.phase}: {view.message}\n{log(client, name)[-3000:]}")
    return view.phase == "succeeded" or (view.kind == "serve" and view.phase == "running")


def verdict(program: Program, found: dict[str, Figure], attempts: int) -> str:
    if attempts == 1:
        return "was never preempted: it had ended"
    whole, cut = found["whole on 1"], found["preempted"]
    if isinstance(whole, float) and isinstance(cut, float):
        away = abs(cut - whole) / abs(whole)
        if away > program.within:
            return f"{away:.1%} away"
        how = "the same" if away < 1e-6 else f"{away:.1%} away, at most {program.within:.0%}"
    else:
        how = "the same" if whole == cut else f"{cut}, not {whole}"
    return how if program.resumes else f"{how}; begins again: it keeps no checkpoint"


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN_S
    while not is_so():
        if time.monotonic() > end:
            raise Went(f"not so after {WITHIN_S:.0f} s")
        time.sleep(0.2)
