"""`Client`: the same in plain calls. The asynchronous core runs in a thread of its own, one a client.

client = Client()
run = client.apply("spec.yaml")
run.wait()
print(run.phase, run.metrics)
print(client.chat("qwen").complete("hello"))
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from llmsched.client.chat import AsyncChat, Messages
from llmsched.client.core import POLL_S, AsyncClient, Specs, Watch
from llmsched.errors import ClusterError
from llmsched.spec import http_models, node_models, trial_models

if TYPE_CHECKING:
    import httpx

    from llmsched.client.by_hand import Beside
    from llmsched.spec.by_hand import ByHandRequest
    from llmsched.spec.usage_models import KeyUsageView, UsageView

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread, and the two ways to wait for what runs there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmsched-client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result. Ctrl-C ends it, and comes through once it has let go of what it held."""
        done: Future[T] = Future()
        running: list[asyncio.Task[T]] = []

        def begin() -> None:
            running.append(self._loop.create_task(work))
            running[0].add_done_callback(lambda task: _hand_over(task, done))

        self._loop.call_soon_threadsafe(begin)
        try:
            return done.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(lambda: running[0].cancel())
            with suppress(CancelledError, Exception):
                done.result()
            raise

    def each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        async def upcoming() -> tuple[bool, Any]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        try:
            while True:
                more, item = self.call(upcoming())
                if not more:
                    return
                yield item
        finally:
            if not self._loop.is_closed():  # closing the client has ended its streams
                self.call(items.aclose())

    def stop(self) -> None:
        self.call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _hand_over(task: asyncio.Task[T], done: Future[T]) -> None:
    if task.cancelled():
        done.set_exception(CancelledError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())


class Chat:
    """See `AsyncChat`."""

    def __init__(self, chat: AsyncChat, loop: _Loop) -> None:
        self._chat = chat
        self._loop = loop

    def complete(self, messages: Messages, **parameters: Any) -> str:
        """The answer's text."""
        return self._loop.call(self._chat.complete(messages, **parameters))

    def stream(self, messages: Messages, **parameters: Any) -> Iterator[str]:
        """The answer's text piece by piece, as it is made."""
        return self._loop.each(self._chat.stream(messages, **parameters))

    def respond(self, messages: Messages, **parameters: Any) -> dict[str, Any]:
        """The whole OpenAI response object, usage included."""
        return self._loop.call(self._chat.respond(messages, **parameters))

    def classify(self, texts: str | Sequence[Any], *, explain: bool = False) -> list[dict[str, Any]]:
        """Of each text (or [text, text_pair]) {"label", "scores": {label: 0..1}}; to `explain` also "why": of each word
        {"text", "weight", "at": {"start", "end"}}. Raises LlmschedError."""
        return self._loop.call(self._chat.classify(texts, explain=explain))

    def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """Of each text its vector. Raises LlmschedError."""
        return self._loop.call(self._chat.embed(texts))

    def transcribe(self, audio: bytes) -> str:
        """What is said in an audio file, of the rate that the model hears. Raises LlmschedError."""
        return self._loop.call(self._chat.transcribe(audio))

    def post(self, body: Any, path: str = "", *, session: str = "") -> Any:
        """Of an app: JSON to /v1/apps/NAME, or to `path` below it, and its JSON answer. `session` goes as X-Session-Id,
        for `routing: session-affinity`. Raises LlmschedError."""
        return self._loop.call(self._chat.post(body, path, session=session))

    def models(self) -> list[str]:
        return self._loop.call(self._chat.models())


class Run:
    """What one `apply` submitted: one workload, or all of a file. `run["name"]` is one of several."""

    def __init__(self, client: Client, applied: list[http_models.Applied]) -> None:
        self._client = client
        self.applied = applied

    @property
    def ids(self) -> list[str]:
        """Of its workloads: `NAME`, or `NAME@N` of a later run."""
        return [one.id for one in self.applied]

    def __repr__(self) -> str:
        return f"<Run of {', '.join(self.ids)}>"

    def __getitem__(self, name: str) -> Run:
        chosen = [one for one in self.applied if name in (one.name, one.id)]
        if not chosen:
            raise KeyError(f"{name!r} was not applied here; there are {', '.join(self.ids)}")
        return Run(self._client, chosen)

    def wait(self, timeout_s: float | None = None, *, watch: Watch | None = None, check: bool = True) -> Run:
        """Until everything that ends has ended and everything that serves answers. `watch` sees each view at each look.

        Raises RequestError ("timeout") after `timeout_s` seconds and, unless `check` is False, ClusterError ("failed")
        that says what failed or was cancelled, and why.
        """
        views = self._client.wait_all(self.ids, timeout_s=timeout_s, watch=watch)
        lost = [view for view in views if view.phase in ("failed", "cancelled")]
        if check and lost:
            said = "; ".join(f"{view.id} {view.phase}: {view.message or 'it does not say why'}" for view in lost)
            raise ClusterError(said, code="failed", hint=f"See llmsched logs {lost[0].id}.")
        return self

    @property
    def views(self) -> list[http_models.WorkloadView]:
        """As they are now; asks the controller."""
        return [self._client.status(workload_id) for workload_id in self.ids]

    @property
    def phase(self) -> str:
        """Of one workload its own; of several the worst: the first that failed, was cancelled or is not there yet."""
        views = self.views
        for wanted in ("failed", "cancelled"):
            if any(view.phase == wanted for view in views):
                return wanted
        on_its_way = next((view.phase for view in views if not view.is_settled), None)
        ended = next((view.phase for view in views if view.ended), None)
        return on_its_way or ended or views[0].phase

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of the results; of several workloads all, a later one of the file winning."""
        return {name: value for view in self.views for name, value in view.metrics.items()}

    @property
    def artifact(self) -> str | None:
        """Where the last result lies that there is; None: none yet."""
        return next((view.artifact for view in reversed(self.views) if view.artifact), None)


class Client:
    """A controller's plain client; arguments and errors as `AsyncClient`'s. Closing it is optional.

    It may be used from any thread, within a running event loop (a notebook's too), and in a process that was forked.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = AsyncClient(address, token, home=home, transport=transport)
        self._again = self._core.url, self._core._http.token, transport
        self._loop = _Loop()
        _clients.add(self)

    def _after_fork(self) -> None:
        """Neither the thread nor the connections of the process that made it are this one's."""
        url, token, transport = self._again
        self._core = AsyncClient(url, token, transport=transport)
        self._loop = _Loop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.call(self._core.close())
        self._loop.stop()

    @property
    def url(self) -> str:
        """The controller's address, `http://HOST:PORT`."""
        return self._core.url

    def plan(self, specs: Specs) -> list[http_models.Planned]:
        return self._loop.call(self._core.plan(specs))

    def apply(self, specs: Specs, *, again: bool = False, idempotency_key: str | None = None) -> Run:
        return Run(self, self._loop.call(self._core.apply(specs, again=again, idempotency_key=idempotency_key)))

    def wait(
        self, name: str, *, timeout_s: float | None = None, watch: Watch | None = None, poll_s: float = POLL_S
    ) -> http_models.WorkloadView:
        """Until it has ended; a serve workload: until it answers. Raises RequestError ("timeout")."""
        return self._loop.call(self._core.wait(name, timeout_s=timeout_s, watch=watch, poll_s=poll_s))

    def wait_all(
        self,
        names: Sequence[str],
        *,
        timeout_s: float | None = None,
        watch: Watch | None = None,
        poll_s: float = POLL_S,
    ) -> list[http_models.WorkloadView]:
        return self._loop.call(self._core.wait_all(names, timeout_s=timeout_s, watch=watch, poll_s=poll_s))

    def status(self, name: str) -> http_models.WorkloadView:
        return self._loop.call(self._core.status(name))

    def workloads(
        self,
        *,
        active: int | None = None,
        waiting: int | None = None,
        ended: int | None = None,
        every: int | None = None,
        cursor: str | None = None,
        user: str | None = None,
        queue: str | None = None,
        phase: str | Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> http_models.WorkloadList:
        """One page, newest first: at most so many of each group, or of `every` one. With a cursor of `next` (and the
        same choice again): more of its group. `user`, `queue`, `phase` (one or several), `labels` and `parent` choose;
        what work has asked for and has ended is listed by its `parent`, and by `every`."""
        return self._loop.call(
            self._core.workloads(
                active=active,
                waiting=waiting,
                ended=ended,
                every=every,
                cursor=cursor,
                user=user,
                queue=queue,
                phase=phase,
                labels=labels,
                parent=parent,
            )
        )

    def all_workloads(
        self,
        *,
        user: str | None = None,
        queue: str | None = None,
        phase: str | Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> http_models.WorkloadList:
        """Every page, one after the other, as one list. It is as long as history: `workloads` gives the newest."""
        return self._loop.call(
            self._core.all_workloads(user=user, queue=queue, phase=phase, labels=labels, parent=parent)
        )

    def why(self, name: str) -> http_models.WhyView:
        return self._loop.call(self._core.why(name))

    def diagnose(self, name: str) -> http_models.DiagnosisView:
        return self._loop.call(self._core.diagnose(name))

    def trials(self, name: str) -> trial_models.TrialTable:
        """Of a search, the best first. Raises RequestError for a workload that is none."""
        return self._loop.call(self._core.trials(name))

    def story(self, name: str, *, before: int | None = None) -> http_models.StoryView:
        """The last of it; `before`: what was before, as `earlier` of an answer says."""
        return self._loop.call(self._core.story(name, before=before))

    def logs(
        self,
        name: str,
        *,
        follow: bool = False,
        gang: int | None = None,
        attempt: int | None = None,
        rank: int | None = None,
        tail: int | None = None,
    ) -> Iterator[http_models.LogLine]:
        lines = self._core.logs(name, follow=follow, gang=gang, attempt=attempt, rank=rank, tail=tail)
        return self._loop.each(lines)

    def exec(
        self,
        name: str,
        command: Sequence[str],
        *,
        rank: int = 0,
        gang: int | None = None,
        timeout_s: float = 600,
    ) -> Iterator[http_models.ExecLine]:
        """Run a command (a list of words) beside a running member: what it writes, and last how it ended."""
        return self._loop.each(self._core.exec(name, command, rank=rank, gang=gang, timeout_s=timeout_s))

    def by_hand(self, name: str, ask: ByHandRequest) -> Beside:
        """Something done by hand beside a running member of `name`, until it is closed: see `client.by_hand`. Raises
        RequestError, NotAllowed, ClusterError."""
        return self._loop.call(self._core.by_hand(name, ask))

    def events(self, after: int = 0, *, follow: bool = True) -> Iterator[http_models.EventView]:
        return self._loop.each(self._core.events(after, follow=follow))

    def cancel(self, name: str) -> http_models.WorkloadView:
        return self._loop.call(self._core.cancel(name))

    def scale(self, name: str, size: int) -> http_models.WorkloadView:
        return self._loop.call(self._core.scale(name, size))

    def rollback(self, name: str, to: int | None = None, *, adapter: str | None = None) -> http_models.WorkloadView:
        return self._loop.call(self._core.rollback(name, to, adapter=adapter))

    def secrets(self) -> list[http_models.SecretView]:
        return self._loop.call(self._core.secrets())

    def set_secret(self, name: str, value: str, *, shared: bool = False) -> http_models.SecretView:
        return self._loop.call(self._core.set_secret(name, value, shared=shared))

    def remove_secret(self, name: str, *, shared: bool = False) -> http_models.SecretView:
        return self._loop.call(self._core.remove_secret(name, shared=shared))

    def models(self, name: str | None = None) -> list[http_models.ModelVersion]:
        return self._loop.call(self._core.models(name))

    def pull(self, name: str, folder: str | Path) -> http_models.Pulled:
        return self._loop.call(self._core.pull(name, folder))

    def nodes(self) -> node_models.NodeList:
        return self._loop.call(self._core.nodes())

    def drain_node(
        self, node: str, *, within: str | float | None = None, until: str | float | None = None
    ) -> node_models.NodeList:
        return self._loop.call(self._core.drain_node(node, within=within, until=until))

    def undrain_node(self, node: str) -> node_models.NodeList:
        return self._loop.call(self._core.undrain_node(node))

    def queues(self) -> http_models.QueueList:
        return self._loop.call(self._core.queues())

    def usage(
        self, *, by: Sequence[str] = ("user", "queue"), since: str = "30d", until: str | None = None, limit: int = 1_000
    ) -> UsageView:
        return self._loop.call(self._core.usage(by=by, since=since, until=until, limit=limit))

    def key_usage(
        self, *, by: Sequence[str] = ("key", "model"), since: str = "30d", until: str | None = None
    ) -> KeyUsageView:
        return self._loop.call(self._core.key_usage(by=by, since=since, until=until))

    def usage_csv(self, *, by: Sequence[str] = ("user", "queue"), since: str = "30d", until: str | None = None) -> str:
        return self._loop.call(self._core.usage_csv(by=by, since=since, until=until))

    def reservations(self) -> list[http_models.ReservationView]:
        return self._loop.call(self._core.reservations())

    def reserve(self, reservation: Mapping[str, Any]) -> list[http_models.ReservationView]:
        return self._loop.call(self._core.reserve(reservation))

    def end_reservation(self, name: str) -> list[http_models.ReservationView]:
        return self._loop.call(self._core.end_reservation(name))

    def config(self) -> http_models.ConfigView:
        return self._loop.call(self._core.config())

    def configure(self, file: str | Path | Mapping[str, Any]) -> http_models.ConfigView:
        return self._loop.call(self._core.configure(file))

    def health(self) -> http_models.Health:
        return self._loop.call(self._core.health())

    def dashboard(self, name: str | None = None, path: str = "/") -> bytes:
        """What the dashboard of Ray answers for a path, such as /api/v0/tasks: of the Ray that workload `name` has of
        its own, or of the cluster's."""
        return self._loop.call(self._core.dashboard(name, path))

    def shutdown(self, *, stop_everything: bool = False) -> None:
        """End the controller; what runs is left alone, or taken down first."""
        self._loop.call(self._core.shutdown(stop_everything=stop_everything))

    def chat(self, name: str) -> Chat:
        return Chat(self._loop.call(self._core.chat(name)), self._loop)


for _kind, _like in ((Client, AsyncClient), (Chat, AsyncChat)):
    for _name, _method in vars(_kind).items():
        if not _name.startswith("_") and inspect.isfunction(_method) and not _method.__doc__:
            _method.__doc__ = getattr(_like, _name).__doc__  # one text for both

_clients: WeakSet[Client] = WeakSet()


def _begin_again() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_begin_again)
