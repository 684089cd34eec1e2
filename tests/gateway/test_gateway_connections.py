"""Who may keep a connection to the gateway open, and an answer: whoever shows a key, as long as it is good for it."""

import asyncio
import json
import socket
import time
from contextlib import ExitStack, asynccontextmanager

import httpx
import pytest
from gateway_house import AUTH, KEY, House, events, until

from llmsched import connections, sanitize
from llmsched.gateway import front, server
from llmsched.gateway.front import Gateway


@asynccontextmanager
async def served(house):
    """The house's gateway behind a port, as its actor serves it; its address."""
    web = server.web_server(house.gateway)
    web.install_signal_handlers = lambda: None
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[:2]
        finally:
            web.should_exit = True
            await serving


def test_silent_connections_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(server, "WAITING_OF_ONE_ADDRESS", 50)

    async def main():
        async with served(House("a")) as place:
            with ExitStack() as stack:
                silent = [stack.enter_context(socket.create_connection(place)) for _ in range(60)]
                silent[-1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")  # and says no more
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place[1]}", headers=AUTH) as client:
                    answer = await client.post("/v1/chat/completions", json={"model": "qwen"})
                assert answer.status_code == 200
                silent[0].setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(silent[0], 1) == b"", "the oldest one is closed"

    asyncio.run(main())


def test_an_answer_that_takes_long_keeps_its_connection_and_one_without_a_key_does_not(monkeypatch):
    monkeypatch.setattr(connections, "WAIT_AT_MOST_S", 0.5)

    async def main():
        house = House("a")
        gate = house["a"].hold = asyncio.Event()
        async with served(house) as place, httpx.AsyncClient(base_url=f"http://127.0.0.1:{place[1]}") as client:
            asked = asyncio.create_task(client.post("/v1/chat/completions", json={"model": "qwen"}, headers=AUTH))
            await until(lambda: house["a"].calls == 1)
            reader, writer = await asyncio.open_connection(*place)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            assert await reader.read() == b"", "closed, after a moment"
            writer.close()
            gate.set()
            assert (await asked).status_code == 200

    asyncio.run(main())


def revoked(table):
    table["keys"] = []


def expired(table):
    table["keys"][0]["expires"] = time.time() - 1


def narrowed(table):
    table["keys"][0]["models"] = ["desk"]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("change", [revoked, expired, narrowed])
def test_an_answer_ends_with_the_key_that_asked_for_it(change, streams):
    async def main():
        house = House("a")
        house["a"].hold = asyncio.Event()
        asked = asyncio.create_task(house.chat(stream=streams))
        await until(
            lambda: house["a"].calls == 1 and all(one.has_begun == streams for one in house.gateway._open._open)
        )
        house.table["version"] += 1
        house.gateway.route(house.table)
        assert not asked.done(), "a table that still has the key ends nothing"
        change(house.table)
        house.gateway.route(house.table)
        response = await asked
        error = json.loads(events(response)[-1])["error"] if streams else response.json()["error"]
        assert (response.status_code, error["code"]) == (200 if streams else 401, "invalid_api_key")
        assert "[DONE]" not in response.text
        await until(lambda: house["a"].cancelled == 1 and not house.gateway.load()["qwen"]["ongoing"])

    asyncio.run(main())


def test_a_key_ends_at_its_time_without_any_word_of_the_controller():
    async def main():
        house = House("a")
        house["a"].hold = asyncio.Event()
        house.table["keys"][0]["expires"] = time.time() + 0.2
        house.gateway.route(house.table)
        response = await house.chat(stream=True)  # held until the key is over
        assert json.loads(events(response)[-1])["error"]["message"] == "This key has expired."
        assert (await house.chat()).status_code == 401
        assert house["a"].calls == 1

    asyncio.run(main())


@pytest.mark.parametrize("ends", ["key", "time"])
def test_a_client_that_does_not_read_holds_up_no_end(monkeypatch, ends):
    monkeypatch.setattr("llmsched.gateway.front.LAST_WORDS_S", 0.01)
    monkeypatch.setattr("llmsched.gateway.open_requests.READ_WITHIN_S", 0.01)

    async def main():
        house = House("a", timeout_s=0.01 if ends == "time" else 600)
        body = json.dumps({"model": "qwen", "stream": True}).encode()
        sent, never = [], asyncio.Event()
        arrives = [{"type": "http.request", "body": body}]

        async def receive():
            return arrives.pop() if arrives else await never.wait()

        async def send(message):
            sent.append(message)
            if len(sent) > 1:
                await never.wait()

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        asked = asyncio.create_task(house.gateway(scope, receive, send))
        await until(lambda: len(sent) == 2)
        if ends == "key":
            revoked(house.table)
            house.gateway.route(house.table)
        await asked
        assert not house.gateway.load()["qwen"]["ongoing"]

    asyncio.run(main())


def test_a_model_that_leaves_the_table_is_answered_to_the_end():
    async def main():
        house = House("a")
        gate = house["a"].hold = asyncio.Event()
        asked = asyncio.create_task(house.chat())
        await until(lambda: house["a"].calls == 1)
        del house.table["models"]["qwen"]
        narrowed(house.table)
        house.gateway.route(house.table)
        gate.set()
        assert (await asked).status_code == 200

    asyncio.run(main())


def test_a_gateway_that_has_just_been_made_anew_waits_for_its_table_and_calls_no_key_wrong(monkeypatch):
    async def main():
        house = House("a")
        house.gateway = Gateway(house.replicas.__getitem__)
        asked = asyncio.create_task(house.chat())
        assert (await house.ask("GET", "/healthz")).status_code == 200
        assert not asked.done()
        house.gateway.route(house.table)
        assert (await asked).status_code == 200

        monkeypatch.setattr(front, "TABLE_WITHIN_S", 0.01)
        house.gateway = Gateway(house.replicas.__getitem__)
        answer = await house.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
        assert answer.headers["retry-after"] == "1"

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/apps/%00", "/v1/models/%e2%80%ae", "/v1/%1b[31m", "/v1/chat/completions"])
def test_what_is_refused_comes_back_as_no_terminal_obeys_it(path):
    async def main():
        for method in ("GET", "POST"):
            response = await House("a").ask(method, path, json={"model": "\u202eqwen\x1b[31m"})
            message = response.json()["error"]["message"]
            assert 400 <= response.status_code < 500 and sanitize.shown(message) == message

    asyncio.run(main())
