"""The client proper, asynchronous: files become specs here, specs travel, answers come back as wire models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from llmsched.client import given, pull, workdir
from llmsched.client.chat import AsyncChat
from llmsched.client.transport import Transport, locate
from llmsched.client.usage import UsageQuestions
from llmsched.core.workload import split_run
from llmsched.errors import ClusterError, RequestError
from llmsched.spec import http_models, node_models, trial_models

if TYPE_CHECKING:  # the kinds of specs take their time, and only who sends one needs them
    import httpx

    from llmsched.client.by_hand import Beside
    from llmsched.spec.by_hand import ByHandRequest
    from llmsched.spec.workload import WorkloadSpec

POLL_S = 0.5
PAGE = 250  # of a list that is wanted whole
# A file, one workload as a dict or a model of `llmsched.spec`, or several of these in any mixture.
Specs: TypeAlias = "str | Path | Mapping[str, Any] | WorkloadSpec | Sequence[Any]"
Watch = Callable[[http_models.WorkloadView], None]


class AsyncClient(UsageQuestions):
    """`address` and `token` default to LLMSCHED_ADDRESS and LLMSCHED_TOKEN, else to the controller of the home.

    Every call raises ClusterError when no controller answers, and NotAllowed when the token may not; one about a
    workload, RequestError ("unknown_workload") when there is none of that name. What else one raises it says. GPUs are
    counted (0.5 is half a GPU), memory is in bytes, moments in seconds since 1970.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url, found = locate(address, token, home)
        self._http = Transport(url, found, transport)

    @property
    def url(self) -> str:
        """The controller's address, `http://HOST:PORT`."""
        return self._http.url

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of its connections. What was submitted goes on."""
        await self._http.close()

    # --- asking for work ---------------------------------------------------------------------------------------

    async def plan(self, specs: Specs) -> list[http_models.Planned]:
        """What would happen now. Changes nothing. Raises SpecError with every problem of the file."""
        from llmsched.spec.spec_requests import PlanRequest

        reads: dict[str, list[str]] = {}
        body = PlanRequest(specs=await self._load(specs, upload=False, reads=reads))
        planned = (await self._http.ask(http_models.PlannedList, "POST", "/api/v1/plan", body=body)).planned
        for one in planned:  # what lies in the workdir is seen from here
            one.reads += [each for each in reads.get(one.name, ()) if each not in one.reads]
        return planned

    async def apply(
        self, specs: Specs, *, again: bool = False, idempotency_key: str | None = None
    ) -> list[http_models.Applied]:
        """Submit or update: a path, a mapping or a spec, or a list of them. Returns when it is committed, one answer
        each, in their order. Safe to repeat: unchanged is unchanged; `again` runs once more what has ended. Raises
        SpecError with every problem of the file, and RequestError for the first that is refused: then none is
        submitted."""
        from llmsched.spec.spec_requests import ApplyRequest

        body = ApplyRequest(specs=await self._load(specs, upload=True), again=again)
        headers = {"idempotency-key": idempotency_key or secrets.token_hex(16)}
        try:
            answer = await self._http.ask(http_models.AppliedList, "POST", "/api/v1/apply", body=body, headers=headers)
        except ClusterError as error:
            if error.code != "connection":
                raise
            answer = await self._http.ask(http_models.AppliedList, "POST", "/api/v1/apply", body=body, headers=headers)
        return answer.applied

    async def cancel(self, name: str) -> http_models.WorkloadView:
        """Stop it for good: a training saves first, an endpoint finishes what it serves. Returns when that is decided;
        `wait` for its end. Raises RequestError (unknown, over already), NotAllowed."""
        return await self._http.ask(http_models.WorkloadView, "POST", _path(name, "cancel"))

    async def scale(self, name: str, size: int) -> http_models.WorkloadView:
        """Ask for `size` workers or replicas, within what the spec allows. Raises RequestError, NotAllowed."""
        from llmsched.spec.http_requests import ScaleRequest

        body, path = ScaleRequest(size=size), _path(name, "scale")
        return await self._http.ask(http_models.WorkloadView, "POST", path, body=body)

    async def rollback(
        self, name: str, to: int | None = None, *, adapter: str | None = None
    ) -> http_models.WorkloadView:
        """An endpoint goes back to the revision that answered before its newest, or to revision `to`, as a new one;
        `WorkloadView.back_to` lists them. With `adapter` that one alone, live, to what was published under its name
        before. Raises RequestError where there is none, NotAllowed."""
        from llmsched.spec.http_requests import RollbackRequest

        body, path = RollbackRequest(to=to, adapter=adapter), _path(name, "rollback")
        return await self._http.ask(http_models.WorkloadView, "POST", path, body=body)

    async def wait(
        self, name: str, *, timeout_s: float | None = None, watch: Watch | None = None, poll_s: float = POLL_S
    ) -> http_models.WorkloadView:
        """Until it has ended; a serve workload: until it answers, or ended. `watch` sees it at every look.
        Raises RequestError (code "timeout") that says how it stands when it takes longer than `timeout_s`. One that
        failed is returned as it is: its `message` says why (`Run.wait` raises that)."""
        return (await self.wait_all([name], timeout_s=timeout_s, watch=watch, poll_s=poll_s))[0]

    async def wait_all(
        self,
        names: Sequence[str],
        *,
        timeout_s: float | None = None,
        watch: Watch | None = None,
        poll_s: float = POLL_S,
    ) -> list[http_models.WorkloadView]:
        """As `wait` for several at once; their last views, in the order of the names."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            views = await asyncio.gather(*(self.status(name) for name in names))
            if watch is not None:
                for view in views:
                    watch(view)
            late = next((view for view in views if not view.is_settled), None)
            if late is None:
                return views
            if until is not None and time.monotonic() >= until:
                why = f": {late.reason.message}" if late.reason is not None else ""
                raise RequestError(f"{late.id} is {late.phase} after {timeout_s:g} s{why}.", code="timeout")
            await asyncio.sleep(poll_s)

    async def secrets(self) -> list[http_models.SecretView]:
        """Names of one's own secrets and of the shared ones; nothing ever shows a value."""
        return (await self._http.ask(http_models.SecretList, "GET", "/api/v1/secrets")).secrets

    async def set_secret(self, name: str, value: str, *, shared: bool = False) -> http_models.SecretView:
        """Kept encrypted, given to workloads that name it as an environment variable. Raises RequestError."""
        from llmsched.spec.http_requests import SecretRequest

        body = SecretRequest(value=value, shared=shared)
        return await self._http.ask(http_models.SecretView, "PUT", f"/api/v1/secrets/{_quoted(name)}", body=body)

    async def remove_secret(self, name: str, *, shared: bool = False) -> http_models.SecretView:
        """What runs keeps the value it was given. Raises RequestError for one that is not there."""
        params = {"shared": shared}
        return await self._http.ask(http_models.SecretView, "DELETE", f"/api/v1/secrets/{_quoted(name)}", params=params)

    async def shutdown(self, *, stop_everything: bool = False) -> None:
        """End the controller; what runs is left alone, or taken down first. Raises NotAllowed: it wants an operator."""
        from llmsched.spec.http_requests import ShutdownRequest

        body = ShutdownRequest(stop_everything=stop_everything)
        await self._http.ask(http_models.Alive, "POST", "/api/v1/shutdown", body=body)

    # --- looking -------------------------------------------------------------------------------------------------

    async def status(self, name: str) -> http_models.WorkloadView:
        """The newest run of that name, or `NAME@N`, with its gangs. GPUs are counted (0.5 is half a one), stamps are
        seconds since 1970. Raises RequestError with the nearest names when there is none."""
        return await self._http.ask(http_models.WorkloadView, "GET", _path(name))

    async def workloads(
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
        chosen: dict[str, Any] = {"active": active, "waiting": waiting, "ended": ended, "every": every}
        chosen |= {"cursor": cursor, "user": user, "queue": queue, "phase": phase, "label": _labels(labels)}
        chosen["parent"] = parent
        params = {key: value for key, value in chosen.items() if value is not None}
        return await self._http.ask(http_models.WorkloadList, "GET", "/api/v1/workloads", params=params)

    async def all_workloads(
        self,
        *,
        user: str | None = None,
        queue: str | None = None,
        phase: str | Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> http_models.WorkloadList:
        """Every page, one after the other, as one list. It is as long as history: `workloads` gives the newest."""
        chosen: dict[str, Any] = {"user": user, "queue": queue, "phase": phase, "labels": labels, "parent": parent}
        whole = page = await self.workloads(active=0, waiting=0, ended=0, every=PAGE, **chosen)
        while page.next:
            page = await self.workloads(every=PAGE, cursor=page.next[0], **chosen)
            whole.workloads += page.workloads
        whole.next = []
        return whole

    async def why(self, name: str) -> http_models.WhyView:
        """Why it waits and what would start it, or why it runs where it runs, or how it ended. Raises RequestError."""
        return await self._http.ask(http_models.WhyView, "GET", _path(name, "why"))

    async def diagnose(self, name: str) -> http_models.DiagnosisView:
        """What slows it, as far as it was measured, and what to do. Raises RequestError."""
        return await self._http.ask(http_models.DiagnosisView, "GET", _path(name, "diagnose"))

    async def trials(self, name: str) -> trial_models.TrialTable:
        """Of a search, the best first. Raises RequestError for a workload that is none."""
        return await self._http.ask(trial_models.TrialTable, "GET", _path(name, "trials"))

    async def story(self, name: str, *, before: int | None = None) -> http_models.StoryView:
        """The last of it; `before`: what was before, as `earlier` of an answer says."""
        params = {} if before is None else {"before": before}
        return await self._http.ask(http_models.StoryView, "GET", _path(name, "story"), params=params)

    async def models(self, name: str | None = None) -> list[http_models.ModelVersion]:
        """Results of train workloads, the newest version first. Raises RequestError for a name without any."""
        params: dict[str, Any] = {"limit": PAGE} | ({} if name is None else {"name": name})
        found: list[http_models.ModelVersion] = []
        while True:
            page = await self._http.ask(http_models.ModelList, "GET", "/api/v1/models", params=params)
            found += page.models
            if page.next is None:
                return found
            params["cursor"] = page.next

    async def pull(self, name: str, folder: str | Path) -> http_models.Pulled:
        """Put a model (NAME, its newest version, or NAME@VERSION), or what another run left, into `folder`, which is
        not there yet. Raises RequestError for a name without any, SpecError, ClusterError for what came broken."""
        target = pull.free(Path(folder))
        source, workload = await self._result_of(name)
        async with aclosing(self._http.pieces(_path(workload, "result"))) as pieces:
            files = await pull.unpack(pieces, target)
        return http_models.Pulled(
            source=source,
            folder=str(target),
            files=[file.relative_to(target).as_posix() for file in files],
            size_bytes=sum(file.stat().st_size for file in files),
        )

    async def _result_of(self, name: str) -> tuple[str, str]:
        """As specs name it, and the workload that it is of. Raises RequestError."""
        plain, version = split_run(name)
        try:
            versions = await self.models(plain)
        except RequestError as error:
            if error.code != "unknown_model":
                raise
            try:
                view = await self.status(name)
            except RequestError:
                raise error from None
            if view.artifact is None:
                raise
            return f"run://{name}", view.id
        chosen = next((each for each in versions if version in ("", str(each.version))), None)
        if chosen is None:
            there = ", ".join(str(each.version) for each in versions[:10])
            raise RequestError(f'model "{plain}" has no version {version}; it has: {there}.', code="unknown_model")
        return chosen.source, chosen.workload

    async def nodes(self) -> node_models.NodeList:
        """Nodes, what is free on them (GPUs, CPUs, bytes), whose work holds the rest, and types of nodes to come."""
        return await self._http.ask(node_models.NodeList, "GET", "/api/v1/nodes")

    async def drain_node(
        self, node: str, *, within: str | float | None = None, until: str | float | None = None
    ) -> node_models.NodeList:
        """Have a node (its name or id) emptied: `within` seconds or "30m" from now, `until` a time in seconds since
        1970 or "2030-01-31T08:00Z", or with its work's whole grace. Raises RequestError for one that is unknown or
        drained like that already, and for a time that has passed, SpecError for no time at all, NotAllowed."""
        from llmsched.spec.http_requests import drain_request

        body = drain_request(within, until)
        return await self._http.ask(node_models.NodeList, "POST", f"/api/v1/nodes/{_quoted(node)}/drain", body=body)

    async def undrain_node(self, node: str) -> node_models.NodeList:
        """Let work go there again. Raises RequestError for one that is not drained, NotAllowed."""
        return await self._http.ask(node_models.NodeList, "DELETE", f"/api/v1/nodes/{_quoted(node)}/drain")

    async def queues(self) -> http_models.QueueList:
        """Every queue with its quota and use (GPUs) and how many workloads wait and run."""
        return await self._http.ask(http_models.QueueList, "GET", "/api/v1/queues")

    async def reservations(self) -> list[http_models.ReservationView]:
        """In the order of their windows, [opens, closes) in seconds since 1970; those that are over last."""
        return (await self._http.ask(http_models.ReservationList, "GET", "/api/v1/reservations")).reservations

    async def reserve(self, reservation: Mapping[str, Any]) -> list[http_models.ReservationView]:
        """`reservation` is one entry of `reservations` in the cluster file. Raises SpecError, RequestError."""
        from llmsched.spec.spec_requests import ReserveRequest

        body = ReserveRequest.model_validate({"reservation": dict(reservation)})
        return (
            await self._http.ask(http_models.ReservationList, "POST", "/api/v1/reservations", body=body)
        ).reservations

    async def end_reservation(self, name: str) -> list[http_models.ReservationView]:
        """Take back one that was made by command. Raises RequestError for one that is not there or that stands in the
        cluster file, NotAllowed."""
        path = f"/api/v1/reservations/{_quoted(name)}"
        return (await self._http.ask(http_models.ReservationList, "DELETE", path)).reservations

    async def config(self) -> http_models.ConfigView:
        """The configuration in force and its version."""
        return await self._http.ask(http_models.ConfigView, "GET", "/api/v1/config")

    async def configure(self, file: str | Path | Mapping[str, Any]) -> http_models.ConfigView:
        """Put a cluster file in force: its path, or its data. Raises SpecError with every problem of the file."""
        from llmsched.spec import cluster
        from llmsched.spec.spec_requests import ConfigRequest

        if isinstance(file, Mapping):
            body = ConfigRequest(config=cluster.load_json(file))
        else:
            body = ConfigRequest(config=cluster.load(given.read_file(Path(file)), str(file)))
        return await self._http.ask(http_models.ConfigView, "PUT", "/api/v1/config", body=body)

    async def health(self) -> http_models.Health:
        """Whether the controller can do its work, and where its endpoint and dashboard are (`urls`)."""
        return await self._http.ask(http_models.Health, "GET", "/api/v1/health")

    async def logs(
        self,
        name: str,
        *,
        follow: bool = False,
        gang: int | None = None,
        attempt: int | None = None,
        rank: int | None = None,
        tail: int | None = None,
    ) -> AsyncGenerator[http_models.LogLine, None]:
        """What it wrote, line by line: the last `tail` lines of each rank, and with `follow` on until it has ended. Of
        all gangs (replicas) and ranks, and the newest attempt, unless one is named. Raises RequestError."""
        chosen = {"gang": gang, "attempt": attempt, "rank": rank, "tail": tail, "follow": follow or None}
        params = {key: value for key, value in chosen.items() if value is not None}
        async with aclosing(self._http.lines(_path(name, "logs"), params)) as lines:
            async for line in lines:
                yield http_models.LogLine.model_validate_json(line)

    async def exec(
        self,
        name: str,
        command: Sequence[str],
        *,
        rank: int = 0,
        gang: int | None = None,
        timeout_s: float = 600,
    ) -> AsyncGenerator[http_models.ExecLine, None]:
        """Run a command (a list of words) beside a running member: what it writes, and last how it ended. Its text is
        as it was written, control characters and all; that of logs may be shown on any terminal.
        Raises RequestError when nothing runs, or there is no such rank. Closing it ends the command."""
        from llmsched.spec.http_requests import ExecRequest

        body = ExecRequest(command=list(command), rank=rank, gang=gang, timeout_s=timeout_s)
        async with aclosing(self._http.lines(_path(name, "exec"), body=body)) as lines:
            async for line in lines:
                if line:
                    yield http_models.ExecLine.model_validate_json(line)

    async def by_hand(self, name: str, ask: ByHandRequest) -> Beside:
        """Something done by hand beside a running member of `name`: a program with input or at a terminal, a port,
        files. It goes on until it is closed, and blocks whoever reads it: see `client.by_hand`. Raises RequestError,
        NotAllowed, ClusterError."""
        from llmsched.client.by_hand import Beside

        return await asyncio.to_thread(Beside, self._http.url, self._http.token, _path(name, "by-hand"), ask)

    async def events(self, after: int = 0, *, follow: bool = True) -> AsyncGenerator[http_models.EventView, None]:
        """The journal in order, from after `after` on; while following, a broken connection is taken up again."""
        while True:
            params = {"after": after, "follow": follow}
            try:
                async with aclosing(self._http.lines("/api/v1/events", params)) as lines:
                    async for line in lines:
                        if line.startswith("data:"):
                            event = http_models.EventView.model_validate_json(line[5:])
                            after = event.seq
                            yield event
                return
            except ClusterError as error:
                if not follow or error.code != "connection":
                    raise
            await asyncio.sleep(POLL_S)

    async def dashboard(self, name: str | None = None, path: str = "/") -> bytes:
        """What the dashboard of Ray (/api/v1/dashboard) answers for a path, such as /api/v0/tasks: of the Ray that
        workload `name` has of its own, or of the cluster's. Raises RequestError when it has none, ClusterError."""
        async with aclosing(self._http.pieces(dashboard_path(name) + path)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def chat(self, name: str) -> AsyncChat:
        """`name`: a model of the endpoint, such as "qwen" or "qwen:sql". Raises ClusterError when there is none yet."""
        endpoint = (await self.health()).urls.get("endpoint")
        if not endpoint:
            raise ClusterError(
                "there is no endpoint yet.", code="no_endpoint", hint="Apply a serve workload and wait for it."
            )
        return AsyncChat(endpoint, name, self._http.token)

    # --- files -----------------------------------------------------------------------------------------------------

    async def _load(self, specs: Specs, *, upload: bool, reads: dict[str, list[str]] | None = None) -> list[Any]:
        """The typed specs, each folder `workdir` replaced by the name of its packed content. `reads` is filled with
        what each reads of it, by name."""
        wanted = [specs] if isinstance(specs, str | Path | Mapping) or not isinstance(specs, Sequence) else specs
        ready: list[Any] = []
        for each in wanted:
            file = Path(each) if isinstance(each, str | Path) else None
            loaded = [given.checked(each)] if file is None else given.load_file(file)
            said = {} if reads is None else reads
            ready += [await self._with_workdir(spec, file, upload=upload, reads=said) for spec in loaded]
        return ready

    async def _with_workdir(self, spec: Any, file: Path | None, *, upload: bool, reads: dict[str, list[str]]) -> Any:
        folder, base = spec.workdir, Path() if file is None else file.parent
        if folder is not None and folder.startswith(http_models.WORKDIR_PREFIX):
            return spec
        from llmsched.client import sources

        if folder is None:
            await asyncio.to_thread(sources.check_apps, spec, None)
            return spec
        packed = await asyncio.to_thread(workdir.pack, base / folder, file)
        sources.check_shipped(spec, packed.leaves_out)
        reads[spec.name] = [*await asyncio.to_thread(sources.check, spec, base / folder), packed.note()]
        if upload:
            await self._upload(packed)
        return spec.model_copy(update={"workdir": http_models.WORKDIR_PREFIX + packed.sha256})

    async def _upload(self, packed: workdir.Packed) -> None:
        path = f"/api/v1/workdirs/{packed.sha256}"
        try:
            await self._http.ask(http_models.WorkdirStored, "GET", path)
        except RequestError as error:
            if error.code != "unknown_workdir":
                raise
            headers = {"content-type": "application/zip"}
            await self._http.ask(http_models.WorkdirStored, "PUT", path, content=packed.content, headers=headers)


def _labels(labels: Mapping[str, str] | None) -> list[str] | None:
    return None if labels is None else [f"{key}={value}" for key, value in labels.items()]


def dashboard_path(name: str | None) -> str:
    """The route of the API below which a dashboard is."""
    return "/api/v1/dashboard" if name is None else _path(name, "dashboard")


def _path(name: str, part: str = "") -> str:
    return f"/api/v1/workloads/{_quoted(name)}" + (f"/{part}" if part else "")


def _quoted(name: str) -> str:
    return quote(name, safe="@", errors="surrogatepass")  # what is no text is nobody's name: the server says so
