"""Pictures of what a text names, as the drawing loop has learnt to draw it, by OpenAI's route for images.

    serve: {app: "workloads.apps.painter:Painter", args: {model: "run://digits"}}

`client.images.generate(model="NAME", prompt="a 7", n=2)` of the stock client, or a POST to /v1/images/generations. The
prompt names one of the labels that were learnt, as a word; nothing else of it has a meaning here. `size` is how large
the small picture is shown ("256x256"), `seed` makes it again. Pictures come as PNG in base64.
"""

from __future__ import annotations

import base64
import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llmsched import sanitize
from llmsched.data.parameters import RequestError, refuse_what_is_not_here
from workloads.loops.drawing import Drawer

MOST = 64  # pictures of one request
LARGEST = 1024  # pixels of a side
_KNOWN = {"model", "prompt", "n", "size", "seed", "response_format", "user"}
_NAMED = 20  # labels in an error


class Painter:
    """`model`: the result of workloads.loops.drawing."""

    routes = ("images/generations",)

    def __init__(self, *, model: str) -> None:
        if not Path(model, "drawing.json").is_file():
            raise ValueError(f"model: {model} is no result of workloads.loops.drawing: it has no drawing.json")
        self._drawer = Drawer(Path(model))

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise RequestError("The body must be a JSON object.", code="invalid_json")
        refuse_what_is_not_here(body, _KNOWN)
        if body.get("response_format", "b64_json") != "b64_json":
            raise RequestError(
                'Nothing is kept to be fetched: "response_format" is "b64_json" here.', param="response_format"
            )
        label, side = self._label(body.get("prompt")), self._side(body.get("size"))
        count = _whole(body, "n", 1, 1, MOST)
        seed = _whole(body, "seed", time.time_ns() % 2**32, 0, 2**63 - 1)
        drawn = self._drawer.draw(label, count, seed)
        return {"created": int(time.time()), "data": [{"b64_json": png(each, side)} for each in drawn]}

    def _label(self, prompt: Any) -> int:
        labels = self._drawer.labels
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError('"prompt" is missing: a text that names what to draw.', param="prompt")
        named = [
            number for number, label in enumerate(labels)
            if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", prompt, re.IGNORECASE)
        ]  # fmt: skip
        if len(named) != 1:
            more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
            there = sanitize.line(", ".join(labels[:_NAMED]), 400) + more
            what = "names several of" if named else "names none of"
            raise RequestError(f'"prompt" {what} what was learnt: {there}.', param="prompt", code="unknown_label")
        return named[0]

    def _side(self, size: Any) -> int:
        """Pixels."""
        least = self._drawer.size
        if size in (None, "auto"):
            return least
        found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", size) if isinstance(size, str) else None
        if not found or found[1] != found[2] or not least <= int(found[1]) <= LARGEST:
            side = f"a square of {least} to {LARGEST} pixels"
            raise RequestError(f'"size" is {side}, such as "{8 * least}x{8 * least}".', param="size")
        return int(found[1])


def png(pixels: np.ndarray, side: int) -> str:
    """In base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _whole(body: dict[str, Any], name: str, usual: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f'"{name}" is a whole number of {least} to {most:,}.', param=name)
    return value
