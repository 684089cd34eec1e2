"""Asks the endpoint about sentences nobody has learnt, pours the feed in while the desk takes its GPU back, plants a
surge, and listens at a webhook that is down at first. Then it counts alarms over the feed, see alarms.py."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from prepare import FEED, LAST  # isort: skip  # it knows the way to measuring.py

import hours
from alarms import AGAINST, compare, counts_of
from measuring import Hook, by_words, rows_of, same, say, until

from llmsched import Client

DATA, STREAM = Path(__file__).parent / "data", FEED / "inbox" / "feed.jsonl"
BROKEN = ['{"text": "cut', '{"created_at": "2017-12-31T00:00:00Z"}']


def main() -> None:
    client, hook = Client(), Hook(FEED / "hook.pem", down=1)
    hours.tells(client, hook.url)
    accuracy(client)
    feed = rows_of(DATA / "feed.jsonl")
    hours.is_nearly_over(client)
    append([*BROKEN, *map(json.dumps, feed)])
    closing = client.wait("opinion-closing", timeout_s=300)  # the feed gives its GPU back, and goes on afterwards
    say("closing", closing.progress["step"] / len(rows_of(DATA / "opinion-test.jsonl")))
    until(lambda: counted(client) >= len(feed), "the whole feed is labelled and counted")
    answers = [row for file in sorted((FEED / "answers").glob("part-*.jsonl")) for row in rows_of(file)]
    once = sum(count == 1 for count in Counter(row["_row"] for row in answers).values())
    say("rows", once / len(feed) if len(answers) == once else 0.0)
    say("surge", planted(client, hook, feed))
    for part, number, beside in compare(counts_of([date.fromisoformat(row["created_at"][:10]) for row in answers])):
        say(part, number, beside)
    client.cancel("opinion-feed")
    shutil.rmtree(FEED)


def accuracy(client: Client) -> None:
    """Of both halves of the label: who speaks, and how."""
    learnt, rows = rows_of(DATA / "opinion-train.jsonl"), rows_of(DATA / "opinion-test.jsonl")
    texts = [row["text"] for row in rows]
    said = [one["label"] for one in client.chat("opinion").classify(texts)]
    for side, part in enumerate(("topic", "sentiment")):
        plain = by_words([(row["text"], row["label"].split("/")[side]) for row in learnt], texts)
        true = [row["label"].split("/")[side] for row in rows]
        say(part, same([one.split("/")[side] for one in said], true), same(plain, true))


def planted(client: Client, hook: Hook, feed: list[dict[str, Any]]) -> int:
    """Days of three times as many tweets as in the last four weeks, until the webhook has heard of it."""
    last, many = datetime.fromisoformat(f"{LAST}T12:00:00+00:00"), len(feed)
    late = sum(row["created_at"] > str(last - timedelta(days=AGAINST))[:10] for row in feed)
    for day in (0, 1):
        texts = random.Random(day).sample([row["text"] for row in feed], round(3 * late / AGAINST))
        at = (last + timedelta(days=day)).isoformat()
        append([json.dumps({"text": text, "created_at": at}) for text in texts])
        many += len(texts)
        until(lambda many=many: counted(client) >= many, "what was planted is counted")
        if any(one["begins"][:10] == at[:10] for one in ask(client, {"alerts": 100})["alerts"]):
            until(lambda: hook.refused and hook.heard, "the webhook, which was down once, hears of it")
            return day + 1
    return 3


def counted(client: Client) -> int:
    return int(ask(client, {})["rows"])


def ask(client: Client, body: dict[str, Any]) -> Any:
    return client.chat("opinion-watch").post(body)


def append(lines: list[str]) -> None:
    with STREAM.open("a") as out:
        out.writelines(line + "\n" for line in lines)


if __name__ == "__main__":
    main()
