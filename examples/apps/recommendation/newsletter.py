"""A letter for each who reads it: ten films like the one that they liked last, none that they have rated, best first.

What is like it `films-find` knows, and who likes what `films-rank`. The letters are the result, as letters.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmsched.runtime import calls, progress

FOUND, FILMS = 100, 10


def main() -> None:
    readers = [json.loads(line) for line in Path("data/readers.jsonl").read_text().splitlines()]
    with Path("letters.jsonl").open("w") as letters:
        for number, reader in enumerate(readers, 1):
            found = calls.post("films-find", {"query": reader["liked"], "k": FOUND})["passages"]
            known = {*reader["rated"]}
            new = [{"item": one["item"], "text": one["kinds"]} for one in found if one["item"] not in known]
            best = calls.post("films-rank", {"user": reader["user"], "rank": new, "k": FILMS})["order"]
            letters.write(json.dumps({"user": reader["user"], "films": [one["item"] for one in best]}) + "\n")
            progress.report(letters=number)


if __name__ == "__main__":
    main()
