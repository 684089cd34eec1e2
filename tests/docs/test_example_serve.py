"""The Serve application of the example, in one replica, without Ray: what its page says that it answers."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from app_requests import ask, asked
from ray import serve

from workloads.inference import http
from workloads.inference.replica import Replica

EXAMPLE = Path(__file__).parents[2] / "examples" / "09_a_serve_app"


@pytest.fixture
def replica(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    for name in ("run", "get_app_handle", "delete"):
        monkeypatch.setattr(serve, name, getattr(serve, name))
    # A multiplexed model is told to Serve's controller, of which there is none here.
    monkeypatch.setattr("ray.serve.multiplex._ModelMultiplexWrapper._push_model_ids_info", lambda self: None)
    spec = {"serve": {"app": "desk:app"}, "max_ongoing_requests": 8}
    made = Replica({"gang": "desk/0", "attempt": 1, "members": [{"cpus": 1}], "spec": spec})
    yield made
    made.close()
    sys.modules.pop("desk")


@pytest.mark.filterwarnings("ignore:coroutine .*__del__. was never awaited")
def test_the_application_answers_as_its_page_says(replica):
    async def story():
        judged = await ask(replica, path="/judge", query="text=a+good+day")
        assert judged.body.decode() in (EXAMPLE / "README.md").read_text()
        assert (await ask(replica, path="/judge", query="text=bad+poor&model=bad")).json()["score"] == 1.0
        assert (await ask(replica, path="/count/3", method="GET")).body == b"0\n1\n2\n"
        inbox = asyncio.Queue()
        talk = http.messages(replica._server._application, asked(path="/talk", kind="websocket"), inbox)
        assert [one["type"] for one in await anext(talk)] == ["websocket.accept"]
        inbox.put_nowait({"type": "websocket.receive", "text": "Two Words"})
        assert json.loads((await anext(talk))[0]["text"]) == ["two", "words"]
        await talk.aclose()

    asyncio.run(story())
