"""Films by a wish in words, and Friday's letters: of the films in them that were rated later, how many were liked?"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from measuring import rows_of, until

from llmsched import Client

HERE, NAME, SOON = Path(__file__).parent, "films-newsletter", timedelta(seconds=70)  # a minute that is not over yet
WISHES = {
    "a film that makes me laugh": "Comedy", "something scary": "Horror", "cowboys": "Western",
    "a love story": "Romance", "space and robots": "Sci-Fi", "who is the murderer": "Crime",
    "songs and dancing": "Musical", "for my children": "Children", "soldiers at the front": "War",
    "a true story, nothing made up": "Documentary", "magic and dragons": "Fantasy", "cartoons": "Animation",
}  # fmt: skip
FOUND = 10


def wished(client: Client) -> tuple[float, float]:
    """Of the films that are found for a wish, the share of its kind; and that of all films."""
    kinds = [row["kinds"] for row in rows_of(HERE / "data" / "catalogue.jsonl")]
    chat, found, there = client.chat("films-find"), [], []
    for wish, kind in WISHES.items():
        found += [kind in one["kinds"] for one in chat.post({"query": wish, "k": FOUND})["passages"]]
        there += [kind in each for each in kinds]
    return mean(found), mean(there)


def comes(client: Client) -> None:
    """With the next minute."""
    letter = next(one for one in yaml.safe_load_all((HERE / "spec.yaml").read_text()) if one["name"] == NAME)
    client.apply({**letter, "schedule": {"cron": f"{datetime.now(UTC) + SOON:%M %H} * * *"}})


def liked(client: Client, later: list[dict[str, Any]]) -> tuple[float, float]:
    """Of the films in letters that their readers rated later, the share that they liked; and of all that they rated."""
    until(lambda: client.status(NAME).ended, "Friday's letters are written")
    told = {(row["user"], row["item"]): row["liked"] for row in later}
    with tempfile.TemporaryDirectory() as place:
        client.pull(NAME, Path(place) / "letters")
        letters = rows_of(next(Path(place).rglob("letters.jsonl")))
    sent = [(letter["user"], film) for letter in letters for film in letter["films"]]
    known = [told[each] for each in sent if each in told]
    readers = {letter["user"] for letter in letters}
    print(f"{len(letters)} letters, and {len(known)} of their films were rated later")
    return mean(known), mean(one for (user, _), one in told.items() if user in readers)
