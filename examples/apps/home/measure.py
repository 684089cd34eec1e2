"""What a home that listens is worth: commands in words and spoken, faces at the door, warmth. Prints a line a part."""

from __future__ import annotations

import base64
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prepare import asked  # isort: skip  # it knows the way to measuring.py

import numpy as np
from measuring import rows_of, say, until
from PIL import Image
from sklearn.linear_model import LogisticRegression

from llmsched import Client

DATA, CLIENT = Path(__file__).parent / "data", Client()
SPOKEN, LOOKED_AT, _SEED = 16, 60, 7
ASKED = {  # part, of which rows, spoken by whom
    "": ("test", ("en-us", "en-gb", "en-us+f3", "en-gb+m2")),
    "_other": ("other", ("en-gb-scotland", "en-us+f4", "en-029", "en-gb+m7")),
}
SHOWN = (
    ("turn on the lamp in the hall", '{"device": "lamp", "room": "hall", "action": "on"}'),
    ("set the boiler in the hall to 20 degrees", '{"device": "boiler", "room": "hall", "action": "set", "value": 20}'),
    ("please shut the door in the study", '{"device": "door", "room": "study", "action": "close"}'),
)


def commands(part: str, name: str, voices: tuple[str, ...]) -> None:
    rows = rows_of(DATA / f"commands-{name}.jsonl")

    def after(row: dict[str, Any]) -> bool:
        return bool(CLIENT.chat("house").post({"message": row["text"]})["command"] == row["means"])

    def before(row: dict[str, Any]) -> bool:
        """Shown three examples, as turns of a talk."""
        system, message = asked(row["text"])
        turns = [(asked(text)[-1], {"role": "assistant", "content": means}) for text, means in SHOWN]
        messages = [system, *(each for turn in turns for each in turn), message]
        said = CLIENT.chat("assistant").complete(messages, max_tokens=48, temperature=0)
        try:
            return bool(json.loads(said.strip().splitlines()[0]) == row["means"])
        except (ValueError, IndexError):
            return False

    def spoken(pair: tuple[int, dict[str, Any]]) -> bool:
        number, row = pair
        spoken = CLIENT.chat("mouth").post({"text": row["text"], "voice": voices[number % len(voices)]})
        said = CLIENT.chat("voice").post({"audio": spoken["audio"]})
        return bool(said["audio"] and said["answer"]["command"] == row["means"])

    with ThreadPoolExecutor(8) as several:
        right, shown = (sum(several.map(way, rows)) / len(rows) for way in (after, before))
        heard = sum(several.map(spoken, enumerate(rows[:SPOKEN]))) / SPOKEN
    say(f"commands{part}", right, shown)
    say(f"spoken{part}", heard, right)


def door() -> None:
    files = sorted((DATA / "door").iterdir())
    random.Random(_SEED).shuffle(files)
    is_face = [file.name.startswith("face") for file in files]

    def looked(file: Path) -> bool:
        return bool(CLIENT.chat("door").post({"image": base64.b64encode(file.read_bytes()).decode()})["faces"])

    began = time.monotonic()
    looked(files[-1])
    say("door_from_nothing_s", time.monotonic() - began)
    right = sum(looked(file) == face for file, face in zip(files[:LOOKED_AT], is_face, strict=False))
    pixels = np.array([np.asarray(Image.open(file)).ravel() / 255 for file in files])
    reads = LogisticRegression(max_iter=1000).fit(pixels[LOOKED_AT:], is_face[LOOKED_AT:])
    say("door", right / LOOKED_AT, float(reads.score(pixels[:LOOKED_AT], is_face[:LOOKED_AT])))


if __name__ == "__main__":
    door()
    for part, of in ASKED.items():
        commands(part, *of)
    until(lambda: not any(gang.gpus for gang in CLIENT.status("door").gangs), "the door holds nothing again")
    metrics = CLIENT.status("heating").metrics
    say("heating", metrics["eval.mae"], metrics["eval.mae_season"])
