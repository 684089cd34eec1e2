"""A home as an app: a command in words becomes JSON by a language model, is carried out, and is answered."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.exceptions import HTTPException

from llmsched.runtime import calls

ACTIONS = {"on": "is on", "off": "is off", "open": "is open", "close": "is closed", "set": "is set to"}


def asked(text: str) -> list[dict[str, str]]:
    """What the language model is asked: the same in training and here. Speech has no case and few commas."""
    words = re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()
    return [{"role": "system", "content": "Answer with JSON."}, {"role": "user", "content": f"Command: {words}\nJSON:"}]


class House:
    """`model`: a language model that has learnt commands. What the home's devices stand at is kept here alone."""

    def __init__(self, model: str) -> None:
        self._model, self._stands = model, dict[tuple[str, str], str]()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(body.get("message"), str):
            raise HTTPException(422, 'a command is {"message": a text}')
        said = calls.chat(self._model, asked(body["message"]), max_tokens=48, temperature=0)
        try:
            command = json.loads(said)
            device, room, action = (str(command[key]) for key in ("device", "room", "action"))
            now = f"{ACTIONS[action]} {command.get('value', '')}".strip()
        except (ValueError, KeyError, TypeError):
            return {"answer": "I did not understand that.", "command": None}
        self._stands[room, device] = now
        return {"answer": f"The {device} in the {room} {now}.", "command": command}
