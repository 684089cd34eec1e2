"""`llmsched demo`: the whole story on one CPU-only machine, told while it happens.

Starts a local Ray with pretend GPUs and a controller, applies examples/01_fine_tune_and_serve, and shows each moment
as it comes: the plan, the queue, who waits for what, losses, answers. Everything goes through the same client as
anyone's. Start reading at `tell`. The pictures are in `cli/screen.py`; nothing here decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llmsched.cli import cluster, demo_files, placement, show, terminal
from llmsched.cli.screen import Screen
from llmsched.client import Client
from llmsched.errors import ClusterError
from llmsched.spec import http_models

NODES = "2x2:A100"
LONGEST_S = 900.0
POLL_S = 0.5
FIRST_QUESTION = "What is the capital of France? Answer in one sentence."
SUPPORT_QUESTION = "My computer is slow. What should I do?"
REVIEWS = ("a moving and wonderfully acted story", "two hours of my life that i will never get back")
SHORT_STEPS = {"sentiment": 12, "support-tone": 4}

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Views = dict[str, http_models.WorkloadView]


@dataclass
class Moment:
    """Something worth showing, once, as soon as it is there."""

    name: str
    is_there: Callable[[Views], bool]
    show: Callable[[Views], None]


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running at the end, to look around.")
@click.option("--short", is_flag=True, help="Fewer training steps: shows the way, not the learning.")
@show.json_option
def demo(keep: bool, short: bool) -> None:
    """The whole story on one CPU-only machine: fine-tune, serve, ask."""
    home = Path(tempfile.mkdtemp(prefix="llmsched-demo-"))
    os.environ["LLMSCHED_HOME"] = str(home)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("LLMSCHED_CACHE", str(caches / "llmsched"))  # converted models, kept for the next time
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with signals(_interrupt):
            measured = tell(home, keep=keep, short=short)
    except KeyboardInterrupt:  # it has cleaned up and said so
        click.get_current_context().exit(130)
    if not keep:
        placement.forget(home)
    if show.wants_json():
        terminal.echo(json.dumps(measured, indent=2))


@contextlib.contextmanager
def signals(answer: Any) -> Iterator[None]:
    """Within, whatever asks a program to end is answered like this: a handler, or signal.SIG_IGN."""
    before = {name: signal.signal(name, answer) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def tell(home: Path, *, keep: bool, short: bool) -> dict[str, Any]:
    """Run the demo in `home`; returns what was measured.

    Raises LlmschedError when a workload fails or the story does not end in time. Everything is taken down then, as
    after Ctrl-C; the logs stay in `home`.
    """
    example = demo_files.folder()
    began = time.monotonic()
    with Screen(began) as screen:
        try:
            demo_files.fetch(example, screen.say)
            spec = prepare(example, home, screen, short=short)
            screen.say("starting a local Ray with two pretend nodes of two GPUs, and the controller")
            story = Story(cluster.bring_up(home, nodes=NODES), screen, began)
            story.run(spec)
            screen.farewell(home, story.urls(), stays=keep)
        except BaseException:
            screen.say(f"it ends here; logs stay in {home}")
            keep = False
            raise
        finally:
            if not keep:
                with signals(signal.SIG_IGN):  # a second Ctrl-C must not leave half of it running
                    screen.say("cleaning up: workloads, controller, Ray")
                    _, processes = cluster.take_down(home)
                    screen.say(f"{processes} processes of Ray ended; none is left, and no port")
        story.measured["total_s"] = round(time.monotonic() - began, 1)
        screen.say(f"the whole story took {story.measured['total_s']:.0f} s")
    return story.measured


def prepare(example: Path, home: Path, screen: Screen, *, short: bool) -> Path:
    """A copy of `example` with its data, in `home`; `short` cuts the number of steps. Returns the spec's path."""
    folder = home / "example"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(example, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    done = subprocess.run([sys.executable, "prepare.py"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"the demo's data could not be made: {done.stderr.strip()[-500:]}")
    for line in done.stdout.strip().splitlines():
        screen.say(line)
    spec = folder / "spec.yaml"
    if short:
        spec.write_text(shortened(spec.read_text()))
    return spec


def shortened(text: str) -> str:
    """The example with fewer steps, otherwise as it is written: YAML that is read and written anew is another YAML."""
    documents = text.split("\n---\n")
    for name, steps in SHORT_STEPS.items():
        index = next(n for n, document in enumerate(documents) if re.search(rf"^name: {name}\b(?!-)", document, re.M))
        documents[index] = re.sub(r"\bmax_steps: \d+", f"max_steps: {steps}", documents[index])
    return "\n---\n".join(documents)


class Story:
    """The moments in order, and what was measured at each."""

    def __init__(self, client: Client, screen: Screen, began: float) -> None:
        self._client = client
        self._screen = screen
        self._began = began
        self.measured: dict[str, Any] = {"up_s": round(time.monotonic() - began, 1)}

    def urls(self) -> dict[str, str]:
        return {"api": self._client.url, **self._client.health().urls}

    def run(self, spec: Path) -> None:
        """Apply, then show every moment; returns when all have been shown."""
        screen = self._screen
        screen.plan(self._client.plan(spec))
        self._command("apply", "-f", "spec.yaml")
        run = self._client.apply(spec)
        screen.say(f"applied {', '.join(run.ids)}: written to the journal, the scheduler takes it from here")
        screen.decisions_of(self._client)
        moments = [
            Moment("first answer", lambda at: at["assistant"].phase == "running", self._first_answer),
            Moment("why it waits", lambda at: at["support-tone"].reason is not None, self._why),
            Moment("accuracy", lambda at: at["sentiment"].phase == "succeeded", self._accuracy),
            Moment("classifier", lambda at: at["sentiment-api"].phase == "running", self._classify),
            Moment("adapter", self._adapter_is_live, self._with_and_without),
        ]
        until = time.monotonic() + LONGEST_S
        while moments:
            at = {view.name: view for view in self._client.workloads().workloads}
            screen.queue(list(at.values()))
            self._stop_at_failure(at)
            due = [moment for moment in moments if moment.is_there(at)]
            for moment in due:
                moments.remove(moment)
                moment.show(at)
            if time.monotonic() > until:
                waiting = ", ".join(moment.name for moment in moments)
                raise ClusterError(f"after {LONGEST_S:.0f} s these moments have not come: {waiting}.")
            if not due:
                time.sleep(POLL_S)  # between two looks
        screen.queue([])

    def _stop_at_failure(self, at: Views) -> None:
        for view in at.values():
            if view.phase in ("failed", "cancelled"):
                for line in self._client.logs(view.name, tail=20):
                    self._screen.say(f"{view.name}: {line.text}")
                raise ClusterError(f"{view.name} {view.phase}: {view.message}")

    # --- the moments ---------------------------------------------------------------------------------------------

    def _first_answer(self, at: Views) -> None:
        self._command("chat", "assistant", "-m", FIRST_QUESTION)
        asked = time.monotonic()
        first = self._ask("assistant", FIRST_QUESTION, max_tokens=24)
        self.measured["first_token_s"] = round(first - self._began, 1)
        self.measured["first_token_latency_s"] = round(first - asked, 2)
        self._screen.say(f"first token {first - self._began:.0f} s after the start of the demo")

    def _why(self, at: Views) -> None:
        why = self._client.why("support-tone")
        self.measured["why"] = why.reason.code if why.reason else ""
        text = why.text
        if why.reason and why.reason.eta:
            text += f"\nearliest start in {max(why.reason.eta - time.time(), 0):.0f} s, {why.reason.eta_basis}"
        self._screen.box("llmsched why support-tone", text)

    def _accuracy(self, at: Views) -> None:
        metrics = at["sentiment"].metrics
        before, after = metrics["eval.accuracy_before"], metrics["eval.accuracy"]
        self.measured |= {"accuracy_before": round(before, 4), "accuracy_after": round(after, 4)}
        points = (after - before) * 100
        text = f"{before:.1%} before, {after:.1%} after: {points:+.0f} points on sentences it has not seen"
        self._screen.box("llmsched status sentiment", text)

    def _classify(self, at: Views) -> None:
        found = self._client.chat("sentiment").classify(list(REVIEWS))
        best = [f"{each['label']:>9} {max(each['scores'].values()):.0%}" for each in found]
        lines = [f"{answer}  {review}" for answer, review in zip(best, REVIEWS, strict=True)]
        self.measured["classified"] = len(lines)
        self._screen.box(shlex.join(["llmsched", "classify", "sentiment", *REVIEWS]), "\n".join(lines))

    def _adapter_is_live(self, at: Views) -> bool:
        if at["support-tone"].phase != "succeeded":
            return False
        return "assistant:support-tone" in self._client.chat("assistant").models()

    def _with_and_without(self, at: Views) -> None:
        self._screen.say("the same question to both")
        answers = self.measured["answers"] = {}
        for model in ("assistant", "assistant:support-tone"):
            self._command("chat", model, "-m", SUPPORT_QUESTION)
            self._ask(model, SUPPORT_QUESTION, max_tokens=40, into=answers)

    def _command(self, *words: str) -> None:
        """With which anybody sees the same."""
        self._screen.say(f"$ {shlex.join(['llmsched', *words])}")

    # --- the endpoint ----------------------------------------------------------------------------------------------

    def _ask(self, model: str, question: str, *, max_tokens: int, into: dict[str, str] | None = None) -> float:
        """Stream an answer onto the screen; returns when its first piece came."""
        first, said = 0.0, []
        pieces = self._client.chat(model).stream(question, max_tokens=max_tokens, temperature=0.0)
        with self._screen.streaming(model) as write:
            for piece in pieces:
                first = first or time.monotonic()
                said.append(piece)
                write(piece)
        if not said:
            raise ClusterError(f"{model} answered nothing.")
        if into is not None:
            into[model] = "".join(said)
        return first
