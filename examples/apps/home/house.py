"""A home as an app: a command in words becomes JSON by a language model, is carried out, and is answered."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.exceptions import HTTPException

from llmsched.runtime import calls
from workloads.apps import asking

LONGEST = 500  # characters of a command
ACTIONS = {"on": "is on", "off": "is off", "open": "is open", "close": "is closed", "set": "is set to"}


def asked(text: str) -> list[dict[str, str]]:
    """What the language model is asked: the same in training and here. Speech has no case and few commas."""
    words = re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()
    return [{"role": "system", "content": "Answer with JSON."}, {"role": "user", "content": f"Command: {words}\nJSON:"}]


class House:
    """`model`: a language model that has learnt commands."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        message = body.get("message")
        if not isinstance(message, str) or not message.strip() or len(message) > LONGEST:
            raise HTTPException(422, f'a command is {{"message": a text}}, of up to {LONGEST} characters')
        said = asking.asked(calls.chat, self._model, asked(message), max_tokens=48, temperature=0)
        try:
            command = json.loads(said)
            device, room, action = (str(command[key]) for key in ("device", "room", "action"))
            now = f"{ACTIONS[action]} {command.get('value', '')}".strip()
        except (ValueError, KeyError, TypeError):
            return {"answer": "I did not understand that.", "command": None}
        return {"answer": f"The {device} in the {room} {now}.", "command": command}
