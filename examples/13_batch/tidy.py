"""What `map: tidy:Tidy` names: called with a list of rows, it answers with as many. A plain function does as well."""

from __future__ import annotations

from typing import Any


class Tidy:
    """Made once on each worker, with `batch.args`."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.tidied(row["review"]) for row in rows]

    def tidied(self, review: str) -> dict[str, Any]:
        words = " ".join(review.split())
        return {"short": words[: self.most], "shouts": words.isupper() or words.endswith("!")}
