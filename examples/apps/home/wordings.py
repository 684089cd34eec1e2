"""Commands of a home, made: wordings that are learnt and others that are not, with the JSON that they mean."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

ROOMS = ("kitchen", "bedroom", "living room", "bathroom", "hall", "garage", "study", "attic")
SWITCHED = ("lamp", "radio", "fan", "heater", "television", "oven")
MOVED = ("blinds", "window", "door", "curtains")
SET = ("heating", "air conditioning", "boiler")
DEVICES = {"on": SWITCHED, "off": SWITCHED, "open": MOVED, "close": MOVED, "set": SET}
LEARNT = {
    "on": ("turn on the {d} in the {r}", "switch the {d} in the {r} on", "please turn the {r} {d} on"),
    "off": ("turn off the {d} in the {r}", "switch off the {d} in the {r}", "please turn the {r} {d} off"),
    "open": ("open the {d} in the {r}", "please open the {r} {d}"),
    "close": ("close the {d} in the {r}", "please shut the {d} in the {r}"),
    "set": ("set the {d} in the {r} to {v} degrees", "make the {d} in the {r} {v} degrees"),
}
OTHER = {
    "on": ("could you put the {r} {d} on for me", "I want the {d} on in the {r}"),
    "off": ("we do not need the {d} in the {r}, so turn it off", "time to switch the {r} {d} off"),
    "open": ("can somebody open the {d} of the {r}", "in the {r}, open the {d} a little"),
    "close": ("would you close the {r} {d}", "the {d} in the {r} should be shut, it is cold"),
    "set": ("I would like the {r} {d} at {v} degrees", "bring the {d} in the {r} to {v}"),
}
_SEED = 7


def held_out() -> set[tuple[str, str]]:
    """Devices in rooms that no learnt command has together."""
    pairs = sorted({(device, room) for some in DEVICES.values() for device in some for room in ROOMS})
    random.Random(_SEED).shuffle(pairs)
    return set(pairs[: len(pairs) // 4])


def made(words: Mapping[str, tuple[str, ...]], asked: bool, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(a command, what it means), of the pairs that are held out where they are `asked`, else of the others."""
    chance, apart = random.Random(f"{_SEED}{asked}"), held_out()
    while count:
        action, room = chance.choice([*words]), chance.choice(ROOMS)
        device, value = chance.choice(DEVICES[action]), chance.randrange(16, 27)
        if ((device, room) in apart) is asked:
            text = chance.choice(words[action]).format(d=device, r=room, v=value)
            means = {"device": device, "room": room, "action": action}
            yield text, means | ({"value": value} if action == "set" else {})
            count -= 1
