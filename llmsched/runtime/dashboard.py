"""One question to a dashboard of Ray that is at hand, and its answer in pieces, as they come. Knows HTTP, and no Ray.

Only what looks is passed on: GET, and of headers those that say what is wanted. The token is shown here and goes no
further, and of the answer nothing is kept that sets anything in a browser.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

CHUNK = 64 * 1024
ANSWER_AT_MOST = 64 * 1024 * 1024  # bytes; its largest file has some 10 MB, and a log that is followed has no end
SILENCE_AT_MOST_S = 60.0
ASKS = ("accept", "if-none-match", "if-modified-since", "range")
ANSWERS = ("content-type", "etag", "last-modified", "cache-control", "content-range", "accept-ranges", "location")

Said = tuple[str, str] | tuple[str, str, int | None]  # ("head", JSON), ("body", base64) ..., ("end", message, 0 | None)


def ask(
    url: str, token: str, path: str, headers: Mapping[str, str], silence_s: float = SILENCE_AT_MOST_S
) -> Iterator[Said]:
    """`path` with its query. `url` is http://HOST:PORT. The head is {"status", "headers"}."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=silence_s)
    asked = {name: text for name, text in headers.items() if name.lower() in ASKS}
    try:
        connection.request("GET", path, headers={**asked, **({"Authorization": f"Bearer {token}"} if token else {})})
        answer = connection.getresponse()
        kept = {name.lower(): text for name, text in answer.getheaders() if name.lower() in ANSWERS}
        yield "head", json.dumps({"status": answer.status, "headers": kept})
        left = ANSWER_AT_MOST
        while data := answer.read1(CHUNK):
            left -= len(data)
            if left < 0:
                yield "end", f"its answer is larger than {ANSWER_AT_MOST >> 20} MiB", None
                return
            yield "body", base64.b64encode(data).decode()
        yield "end", "", 0
    except (OSError, http.client.HTTPException) as error:
        yield "end", f"its dashboard does not answer: {str(error) or type(error).__name__}", None
    finally:
        connection.close()
