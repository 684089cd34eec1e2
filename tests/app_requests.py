"""Requests to apps, as the gateway gives them to a replica, and what comes back."""

import json
from contextlib import aclosing

ROOT = "/v1/apps/x"


def asked(path="", method="POST", body=None, headers=(), kind="http", query="", multiplexed="", more_body=False):
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return {
        "type": kind,
        "method": method,
        "scheme": "http",
        "http_version": "1.1",
        "root_path": ROOT,
        "path": ROOT + (path or "/"),
        "raw_path": (ROOT + path).encode(),
        "query_string": query.encode(),
        "headers": list(headers),
        "client": None,
        "subprotocols": [],
        "multiplexed": multiplexed,
        "body": raw,
        "more_body": more_body,
    }


class Told:
    """A whole answer."""

    def __init__(self, messages):
        self.status = messages[0]["status"]
        self.headers = dict(messages[0].get("headers", ()))
        self.body = b"".join(one.get("body", b"") for one in messages[1:])

    def json(self):
        return json.loads(self.body)

    def events(self):
        events = [one.removeprefix(b"data: ") for one in self.body.split(b"\n\n") if one]
        return [json.loads(one) for one in events if one != b"[DONE]"]


async def ask(replica, *request_name, **request):
    """The answer of a replica (or its host) to `asked(**request)`; the error that it says in the place of one."""
    messages = []
    async with aclosing(replica.stream("http", asked(**request), None, *request_name)) as batches:
        async for batch in batches:
            if isinstance(batch, dict):
                return batch
            messages += batch
    return Told(messages)
