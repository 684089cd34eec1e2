"""A bound application of Serve in one process: what its deployments say to each other, and when it ends. Without Ray.

Also the proof that what we use of Serve without its promise is as it was.
"""

import asyncio
from typing import Annotated, Any

import pytest
from app_requests import Told, asked
from fastapi import FastAPI, Form, UploadFile, WebSocket
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from waiting import wait_until

from llmsched.runtime import serve_graph, serve_handles
from workloads.inference import http

# Serve's own: the destructor of an ingress is a coroutine, which the collector of garbage cannot await.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .*__del__. was never awaited")


def graph(application: Any, most: int = 8) -> serve_graph.Graph:
    return serve_graph.Graph(application, "llms/x/0/1", most, http.answer_of)


async def told(made: serve_graph.Graph, **request: Any) -> Told:
    return Told([one async for batch in http.messages(made, asked(**request), None) for one in batch])


@serve.deployment(user_config={"plus": 10})
class Adder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def reconfigure(self, config: dict[str, int]) -> None:
        self.plus = config["plus"]

    def add(self, number: int) -> int:
        return number + self.plus

    async def count(self, to: int) -> Any:
        for number in range(to):
            yield {"number": number, "of": serve.get_replica_context().deployment}

    async def keep(self, items: list[int]) -> list[int]:
        items.append(7)
        self.seen = items
        return self.seen

    def fail(self) -> None:
        raise LookupError("no such number")

    def model(self) -> str:
        return serve.get_multiplexed_model_id()


@serve.deployment
class Asks:
    def __init__(self, adder: Any) -> None:
        self.adder = adder

    async def __call__(self, request: Request) -> Any:
        what = request.url.path.rpartition("/")[2]
        if what == "chain":
            return await self.adder.add.remote(self.adder.add.remote(1))
        if what == "stream":
            return [one async for one in self.adder.options(stream=True).count.remote(3)]
        if what == "copies":
            mine = [1]
            theirs = await self.adder.keep.remote(mine)
            return {"mine": mine, "theirs": theirs}
        if what == "fails":
            try:
                await self.adder.fail.remote()
            except LookupError as error:
                return f"caught {error}"
        if what == "model":
            theirs = await self.adder.options(multiplexed_model_id="theirs").model.remote()
            return [theirs, serve.get_multiplexed_model_id()]
        return {"of": serve.get_replica_context().deployment, "at": request.scope["root_path"]}


def test_deployments_call_each_other_by_handles_as_in_processes_of_their_own() -> None:
    async def story() -> None:
        made = graph(Asks.bind(Adder.bind()))
        assert (await told(made, path="/chain")).json() == 21
        assert (await told(made, path="/stream")).json() == [{"number": n, "of": "Adder"} for n in range(3)]
        assert (await told(made, path="/copies")).json() == {"mine": [1], "theirs": [1, 7]}
        assert (await told(made, path="/fails")).body == b"caught no such number"
        assert (await told(made, path="/model", multiplexed="mine")).json() == ["theirs", "mine"]
        assert (await told(made, path="/where")).json() == {"of": "Asks", "at": "/v1/apps/x"}
        made.close()

    asyncio.run(story())


def web(**options: Any) -> Any:
    """An ingress of its own for each test: Serve pickles the class of one that is bound, which has run by then."""
    app = FastAPI()

    @serve.deployment(**options)
    @serve.ingress(app)
    class Web:
        def __init__(self) -> None:
            self.go = asyncio.Event()
            self.inside, self.most, self.sick, self.ends = 0, 0, "", []

        @app.get("/items/{item}")
        def item(self, item: int, q: str = "") -> dict[str, Any]:
            return {"item": item, "q": q}

        @app.put("/items/{item}", status_code=201)
        async def put(self, item: int, request: Request) -> Response:
            return Response(await request.body(), 201, {"x-item": str(item)}, "application/octet-stream")

        @app.get("/hold")
        async def hold(self) -> int:
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await self.go.wait()
            finally:
                self.inside -= 1
            return self.most

        @app.get("/drip")
        def drip(self) -> StreamingResponse:
            async def pieces() -> Any:
                try:
                    for n in range(1000):
                        yield f"{n}\n"
                        await asyncio.sleep(0)
                finally:
                    self.ends.append("drip")

            return StreamingResponse(pieces(), media_type="text/plain")

        @app.websocket("/talk")
        async def talk(self, socket: WebSocket) -> None:
            await socket.accept()
            async for word in socket.iter_text():
                await socket.send_text(word.upper())
            self.ends.append("talk")

        def check_health(self) -> None:
            if self.sick:
                raise RuntimeError(self.sick)

        async def __del__(self) -> None:
            self.ends.append("cleaned up")

    return Web.bind()


def ingress_of(made: serve_graph.Graph) -> Any:
    return made._made[-1]._wrapper.user_callable


def test_a_fastapi_ingress_has_its_paths_methods_and_statuses() -> None:
    async def story() -> None:
        made = graph(web())
        ingress = ingress_of(made)
        assert (await told(made, path="/items/3", query="q=a%20b", method="GET")).json() == {"item": 3, "q": "a b"}
        put = await told(made, path="/items/4", method="PUT", body=b"\x00\xff")
        assert (put.status, put.headers[b"x-item"], put.body) == (201, b"4", b"\x00\xff")
        assert (await told(made, path="/items/x", method="GET")).status == 422
        assert (await told(made, path="/items/3", method="DELETE")).status == 405
        assert (await told(made, path="/openapi.json", method="GET")).json()["servers"] == [{"url": "/v1/apps/x"}]
        await made.check_health()
        ingress.sick = "no more"
        with pytest.raises(RuntimeError, match="no more"):
            await made.check_health()
        made.close()
        assert ingress.ends == ["cleaned up"]

    asyncio.run(story())


def test_a_form_with_a_file_reaches_a_fastapi_ingress() -> None:
    """Starlette looks for python-multipart when it is imported: what `environment.pip` has comes after that."""
    api = FastAPI()

    @serve.deployment
    @serve.ingress(api)
    class Desk:
        @api.post("/file")
        async def file(self, file: UploadFile, note: Annotated[str, Form()]) -> dict[str, Any]:
            return {"name": file.filename, "size": len(await file.read()), "note": note}

    form = (
        b'--b\r\ncontent-disposition: form-data; name="note"\r\n\r\nhi\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.bin"\r\n\r\n12345\r\n--b--\r\n'
    )
    made = graph(Desk.bind())
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    answer = asyncio.run(told(made, path="/file", body=form, headers=headers))
    made.close()
    assert (answer.status, answer.json()) == (200, {"name": "a.bin", "size": 5, "note": "hi"})


def test_no_more_requests_run_and_wait_than_the_deployment_says() -> None:
    async def story() -> None:
        made = graph(web(max_ongoing_requests=2, max_queued_requests=1))
        held = [asyncio.create_task(told(made, path="/hold", method="GET")) for _ in range(4)]
        refused, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert [one.result().status for one in refused] == [503]
        made._made[-1]._loop.call_soon_threadsafe(ingress_of(made).go.set)
        answers = [one.result() for one in (await asyncio.wait(held))[0]]
        assert sorted(one.status for one in answers) == [200, 200, 200, 503]
        assert {one.json() for one in answers if one.status == 200} == {2}
        made.close()

    asyncio.run(story())


def test_what_follows_of_a_long_body_comes_to_the_app_as_one_reads_it() -> None:
    api = FastAPI()

    @serve.deployment
    @serve.ingress(api)
    class Desk:
        @api.post("/sizes")
        async def sizes(self, request: Request) -> list[int]:
            return [len(piece) async for piece in request.stream()]

    async def story() -> None:
        made = graph(Desk.bind())
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        sent = http.messages(made, asked(path="/sizes", body=b"123", more_body=True), inbox)
        assert await anext(sent) == []  # somebody is there, so that the rest may come
        inbox.put_nowait({"type": "http.request", "body": b"45", "more_body": True})
        inbox.put_nowait({"type": "http.request", "body": b"6", "more_body": False})
        assert Told([one async for batch in sent for one in batch]).json() == [3, 2, 1, 0]
        made.close()

    asyncio.run(story())


def test_a_client_that_leaves_ends_the_stream_in_the_app() -> None:
    async def story() -> None:
        made = graph(web())
        batches = http.messages(made, asked(path="/drip", method="GET"), None)
        await anext(batches)
        await batches.aclose()
        wait_until(lambda: ingress_of(made).ends == ["drip"], 10, "its generator is closed")  # on a loop of its own
        made.close()

    asyncio.run(story())


class Held(serve_handles.Running):
    def cancel(self) -> bool:
        return False  # it goes on for as long as it likes


def test_nobody_is_told_of_an_answer_that_fails_after_its_caller_has_left() -> None:
    """The log of an app said "Future exception was never retrieved" for each client that left."""

    async def story() -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["message"]))
        work = Held()
        asks = asyncio.create_task(serve_handles.Result(work, None, "r").get_async())
        await asyncio.sleep(0)
        asks.cancel()
        await asyncio.wait([asks])
        work.set_exception(LookupError("too late"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del asks, work
        return told

    assert asyncio.run(story()) == []


def test_a_websocket_talks_both_ways_and_hears_that_the_client_left() -> None:
    async def story() -> None:
        made = graph(web())
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        sent = http.messages(made, asked(path="/talk", kind="websocket"), inbox)
        assert [one["type"] for one in await anext(sent)] == ["websocket.accept"]
        inbox.put_nowait({"type": "websocket.receive", "text": "hello"})
        assert (await anext(sent))[0]["text"] == "HELLO"
        inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
        assert [one async for one in sent] == []
        assert ingress_of(made).ends == ["talk"]
        made.close()

    asyncio.run(story())


@serve.deployment
class Batches:
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=5)
    async def __call__(self, requests: list[Request]) -> list[int]:
        return [len(requests)] * len(requests)


def test_batched_calls_of_several_clients_come_together() -> None:
    async def story() -> None:
        made = graph(Batches.bind())
        answers = await asyncio.gather(*(told(made) for _ in range(4)))
        assert [one.json() for one in answers] == [4, 4, 4, 4]
        made.close()

    asyncio.run(story())


@serve.deployment
class Broken:
    def __init__(self, how: str = "") -> None:
        if how == "exits":
            raise SystemExit("bye")

    async def __call__(self, request: Request) -> Any:
        match request.url.path.rpartition("/")[2]:
            case "exits":
                raise SystemExit("bye")
            case "value":
                return object()
            case "none":
                return None
        raise KeyError("drawer")


def test_what_a_deployment_raises_ends_its_request_and_nothing_else() -> None:
    async def story() -> None:
        made = graph(Broken.bind())
        error = (await told(made, path="/raises")).json()["error"]
        assert (error["code"], error["message"]) == ("replica_error", "KeyError: 'drawer'")
        with pytest.raises(Exception, match="SystemExit: bye"):
            await told(made, path="/exits")
        unsaid = await told(made, path="/value")
        assert unsaid.status == 500 and "object, which JSON has no word for" in unsaid.json()["error"]["message"]
        assert (await told(made, path="/none")).body == b""
        made.close()

    asyncio.run(story())
    with pytest.raises(Exception, match="SystemExit: bye"):
        graph(Broken.bind("exits"))


def test_an_application_that_an_app_deploys_itself_is_made_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run", "get_app_handle", "delete"):
        monkeypatch.setattr(serve, name, getattr(serve, name))
    made: list[str] = []

    def make(application: Any, name: str) -> serve_graph.Graph:
        made.append(name)
        return graph(application)

    async def story() -> None:
        serve_graph.deploy_inside(make)
        handle = serve.run(Adder.bind(), name="inner", route_prefix="/mine")
        assert await handle.add.remote(1) == 11
        assert await serve.get_app_handle("inner").add.remote(2) == 12
        serve.delete("inner")
        assert made == ["inner"]

    asyncio.run(story())


def test_a_deployment_tells_which_of_its_options_somebody_set() -> None:
    said = Broken.options(num_replicas=2, max_ongoing_requests=3, ray_actor_options={"num_gpus": 0.5})
    options = serve_graph.options_of(said)
    assert {name: options[name] for name in ("num_replicas", "max_ongoing_requests")} == {
        "num_replicas": 2,
        "max_ongoing_requests": 3,
    }
    assert options["ray_actor_options"]["num_gpus"] == 0.5
    assert set(serve_graph.options_of(Broken)) == {"ray_actor_options"}
