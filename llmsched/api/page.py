"""The page at `/`: one static file that asks for a token and then uses the API like everybody else.

It is the same for everyone and says nothing about anyone, so it is answered without a token. Its headers let it run
its own script, talk to its own origin, and nothing else: what a workload's message might smuggle in has no way to act.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

PAGE_PATH = "/"


@cache
def content() -> bytes:
    return files("llmsched.api").joinpath("web", "index.html").read_bytes()


@cache
def headers() -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("script"),
        "style-src": _hash_of("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


def _hash_of(element: str) -> str:
    """Of the only such element of the page, as a content security policy names it."""
    (inside,) = re.findall(rb"<%b>(.*?)</%b>" % (element.encode(), element.encode()), content(), re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"
