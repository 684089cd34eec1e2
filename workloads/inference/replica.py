"""The class that Ray Serve runs for one replica: reads the launch order, loads what it names, answers the gateway.

    call(route, body, adapter) -> answer          stream(route, body, adapter) -> chunks
    load_adapter(name, uri) -> "" or why not      ready() -> what is served here

Errors are answers, `{"error": {...}, "status": 404}`, never exceptions. `adapter` is {"name", "uri"}: one that this
replica does not know yet is loaded on first use and kept.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, aclosing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsched.data.parameters import RequestError
from llmsched.runtime import environment, exceptions
from llmsched.runtime.start_costs import Laps
from llmsched.runtime.storage import LocalStorage, Storage
from workloads.inference.http import of_error
from workloads.sources import BadInput, resolve_model, resolve_path

if TYPE_CHECKING:  # it loads torch, which an app of the user's own may do without: seconds and 100 MB a replica
    from workloads.inference.answers import Server
    from workloads.inference.app import AppServer


OpenMember = Callable[[int], Any]


class Replica:
    """`order` is executors.port.LaunchOrder as JSON data; `open_member` begins the process of another member of its
    gang, by its rank (`serve_apart.Place.open`). Raises BadInput or UserError: the message is for the user."""

    def __init__(self, order: Mapping[str, Any], open_member: OpenMember | None = None) -> None:
        self._open_member = open_member
        self._inputs: dict[str, str] = dict(order.get("inputs") or {})
        self._uris: dict[str, str] = {}  # adapters that are loaded
        self._refused: dict[str, str] = {}  # adapters that are not, and why
        self._loading: dict[str, asyncio.Lock] = {}
        self._name = f"{order['gang']} attempt {order['attempt']}"
        self._open_log(order)
        began, self._laps = time.perf_counter(), Laps()
        try:
            self._server = self._start(order)
        except BaseException as error:
            self._say(exceptions.words(error))
            self._log.close()
            raise
        self._say(f"{self._what} in {time.perf_counter() - began:.1f} s")
        self._laps.lap("load")
        self._warm = asyncio.Lock()

    def _open_log(self, order: Mapping[str, Any]) -> None:
        """What is printed here can be read after this process, like that of any other gang."""
        self._log = ExitStack()
        if storage := order.get("storage"):
            log = environment.LogFile(storage, f"{order['gang']}/{order['attempt']}/logs/0.log")
            self._log.enter_context(environment.output_to(log))
            store = Storage.at(storage)
            if isinstance(store, LocalStorage):
                os.environ.setdefault("LLMSCHED_CACHE", str(store.root / "cache"))

    def _start(self, order: Mapping[str, Any]) -> Server | AppServer:
        spec = order["spec"]
        serve, (member, *others) = spec["serve"], order.get("members") or [{}]
        threads = max(1, min(int(member.get("cpus") or 1), environment.cpu_share(1)))
        os.environ.update(environment.thread_envs(threads))
        if serve.get("app"):
            from workloads.inference import app

            self._what = f"app {serve['app']} is made"
            args = serve.get("args") or {}
            made_of = self._with_results(args)
            return app.make(
                serve["app"],
                made_of,
                order.get("workdir"),
                name=f"llms/{order['gang']}/{order['attempt']}",
                most=int(spec.get("max_ongoing_requests") or 32),
                member=member,
                say=self._say,
                others=others,
                open_member=self._open_member,
                results={uri: (self._inputs[uri], made_of[name]) for name, uri in args.items() if made_of[name] != uri},
            )
        import_engine()
        self._laps.lap("imports")
        source = serve["model"]["source"]
        folder = resolve_model(source, self._inputs)
        self._what = f"model {source} ({serve['task']}) is loaded with {threads} threads"
        server = server_for(serve, folder, threads, float(member.get("gpus") or 0))
        given = {adapter["name"]: adapter["source"] for adapter in serve.get("adapters") or ()}
        given.update(dict(order.get("adapters") or ()))
        self._first_adapters = given
        return server

    def _with_results(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The folder in the place of a result that is named. Raises BadInput."""
        return {
            name: str(resolve_path(value, self._inputs)) if isinstance(value, str) and value in self._inputs else value
            for name, value in args.items()
        }

    # --- the protocol -------------------------------------------------------------------------------------------

    async def ready(self) -> dict[str, Any]:
        """{"routes", "adapters": those loaded, "refused": {adapter: why}, "took": {step: seconds}}; makes a first token
        where the model makes any, and loads the adapters that the order named first."""
        await self._make_first_token()
        given, self._first_adapters = getattr(self, "_first_adapters", {}), {}
        for name, uri in given.items():
            await self.load_adapter(name, uri)
        loaded, refused = dict(self._uris), dict(self._refused)
        return {"routes": list(self._server.routes), "adapters": loaded, "refused": refused, "took": self._laps.took}

    async def _make_first_token(self) -> None:
        first = getattr(self._server, "first_token", None)
        async with self._warm:
            if first is not None and "first_token" not in self._laps.took:
                began = time.perf_counter()
                await first()
                self._laps.took["first_token"] = time.perf_counter() - began

    async def call(self, route: str, body: Any, adapter: Mapping[str, str] | None = None) -> Any:
        try:
            return await self._server.call(route, body, await self._prepared(route, adapter))
        except RequestError as error:
            return error.answer()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self._broken(error)

    async def stream(
        self, route: str, body: Any, adapter: Mapping[str, str] | None = None, inbox: asyncio.Queue[Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        """`inbox`: what a client goes on sending, over a websocket to an app."""
        try:
            name = await self._prepared(route, adapter)
            more = {"inbox": inbox} if inbox is not None else {}
            async with aclosing(self._server.stream(route, body, name, **more)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except RequestError as error:
            yield error.answer()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            yield self._broken(error)

    async def load_adapter(self, name: str, uri: str) -> str:
        """Load the adapter at `uri` under `name`, or replace the one there. "" when done, else what is wrong."""
        async with self._loading.setdefault(name, asyncio.Lock()):
            if self._uris.get(name) == uri:
                return ""
            try:
                folder = await asyncio.to_thread(resolve_model, uri, self._inputs)
                await self._server.load_adapter(name, folder)
            except (BadInput, ValueError, RequestError) as error:
                self._refused[name] = f"adapter {name}: {error}"
                self._say(self._refused[name])
                return self._refused[name]
            self._uris[name] = uri
            self._refused.pop(name, None)
            self._say(f"adapter {name} from {uri} is loaded")
            return ""

    def check_health(self) -> Any:
        """Raises when this replica should be replaced; what it returns is awaited if it can be."""
        return self._server.check()

    def close(self) -> None:
        """Let an app clean up, once nothing is asked of it any more."""
        if (close := getattr(self._server, "close", None)) is not None:
            close()

    # ------------------------------------------------------------------------------------------------------------

    async def _prepared(self, route: str, adapter: Mapping[str, str] | None) -> str | None:
        """Refuse a route that is not served here; the adapter's name once it is loaded."""
        if route not in self._server.routes:
            there = ", ".join(f"/v1/{one}" for one in self._server.routes)
            raise RequestError(f"This model does not answer /v1/{route}, only {there}.", code="wrong_route", status=400)
        if adapter is None:
            return None
        name, uri = adapter["name"], adapter["uri"]
        if self._uris.get(name) != uri and (why := await self.load_adapter(name, uri)):
            raise RequestError(why, param="model", code="adapter_not_loaded", status=400)
        return name

    def _broken(self, error: BaseException) -> dict[str, Any]:
        exceptions.show(error)
        return of_error(error).answer()

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self._name}: {text}", file=sys.stderr, flush=True)


def import_engine() -> None:
    """torch, transformers and what is built on them: they take seconds, whatever the model. Most of transformers would
    be imported when a model is made."""
    ours = "answers", "engine", "forward", "packed", "int8_linear"
    theirs = "modeling_utils", "generation.utils", "models.auto.modeling_auto", "models.auto.tokenization_auto"
    for name in (*(f"workloads.inference.{one}" for one in ours), *(f"transformers.{one}" for one in theirs)):
        import_module(name)


def server_for(serve: Mapping[str, Any], folder: Path, threads: int, gpus: float) -> Server:
    """The server for the spec's task, on the engine it names."""
    from transformers.utils import logging as transformers_logging

    from workloads.adapters import merged
    from workloads.inference.answers import TextServer
    from workloads.inference.engine import Settings, TransformersEngine, device_for, use_threads

    use_threads(threads)
    transformers_logging.disable_progress_bar()  # bars of carriage returns make a log unreadable
    device, task = device_for(gpus), serve["task"]
    folder = merged(folder, serve["model"]["source"])
    engine = serve.get("engine") or "auto"
    kwargs = serve.get("engine_kwargs") or {}
    if engine == "auto":
        is_for_vllm = task == "causal-lm" and device.type == "cuda" and not kwargs.get("quantization")
        engine = "vllm" if is_for_vllm and _has_vllm() else "transformers"
    if engine == "vllm" and not _has_vllm():
        raise BadInput(
            "engine: vllm is asked for, and vLLM is not installed on this node. Put it into the cluster's image, or "
            "into environment.pip of the spec."
        )
    try:
        if engine == "vllm":
            from workloads.inference.kv_transfer import role_of
            from workloads.inference.split import SplitServer
            from workloads.inference.vllm_engine import VllmEngine

            vllm = VllmEngine(folder, kwargs, serve.get("parallelism") or {}, role_of(serve))
            return SplitServer(vllm) if role_of(serve) else TextServer(vllm)
        settings = Settings.of(kwargs)
        if task == "causal-lm":
            return TextServer(TransformersEngine(folder, settings, device))
        if task == "seq2seq-lm":
            from workloads.inference.seq2seq import Seq2SeqEngine

            return TextServer(Seq2SeqEngine(folder, settings, device))
        if task == "image-text-to-text":
            from workloads.inference.seeing import SeeingEngine, SeeingServer

            return SeeingServer(SeeingEngine(folder, settings, device))
        from workloads.inference.forward import Forward, ForwardServer

        return ForwardServer(Forward(folder, task, settings, device))
    except Exception as error:  # a folder that is not what it says makes the libraries fail in many ways
        raise BadInput(f"model {serve['model']['source']} cannot be served as {task}: {error}") from error


def _has_vllm() -> bool:
    import importlib.util

    return importlib.util.find_spec("vllm") is not None
