"""Rows of a table and what they come to, as the tabular loop has learnt it: a label or a number, and why.

    serve: {app: "workloads.apps.scorer:Scorer", args: {model: "run://credits"}}

`{"rows": [{"Age": 42, "Home": "rent"}, ...]}` -> `{"said": [{"label", "score", "scores"}, ...]}`, or of a number
`[{"value"}]`. With `"explain": true` also `why`, what each column adds to the log odds of the label or to the number
beside a usual row, the most first, and `reason`, the same in words. A number that a row lacks counts as the mean.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from starlette.exceptions import HTTPException

from llmsched import sanitize
from workloads.loops.tabular import Learnt
from workloads.sources import BadInput

ROWS_AT_MOST = 2_000  # of one request
NAMED = 3  # columns for it, and against it, of a reason
_EXPECTED = 'expected {"rows": [{COLUMN: VALUE, ...}, ...], "explain": true or false}'


class Scorer:
    """`model`: the result of workloads.loops.tabular."""

    def __init__(self, *, model: str) -> None:
        if not Path(model, "columns.json").is_file():
            raise ValueError(f"model: {model} is no result of workloads.loops.tabular: it has no columns.json")
        self._learnt = Learnt(Path(model))

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = body.get("rows") if isinstance(body, dict) and set(body) <= {"rows", "explain"} else None
        explain = body.get("explain", False) if rows is not None else False
        if not isinstance(rows, list) or not 1 <= len(rows) <= ROWS_AT_MOST or not isinstance(explain, bool):
            raise HTTPException(422, f"{_EXPECTED}; at most {ROWS_AT_MOST:,} rows")
        inputs = torch.cat([self._input(number, row) for number, row in enumerate(rows, 1)])
        said = self._learnt.says(inputs)
        found = [self._shown(each) for each in said]
        if explain:
            for row, one, given, answer in zip(rows, said, inputs, found, strict=True):
                adds = self._learnt.adds(given, int(one.argmax()))
                order = sorted(adds, key=lambda name: -abs(adds[name]))
                why = [{"column": name, "value": row.get(name), "weight": round(adds[name], 4)} for name in order]
                answer |= {"why": why, "reason": self._reason(answer, why)}
        return {"said": found}

    def _input(self, number: int, row: Any) -> torch.Tensor:
        """[1, inputs]"""
        known = self._learnt.columns.about
        if not isinstance(row, dict):
            raise HTTPException(422, f"row {number} is not an object with named columns")
        if (strange := next((name for name in row if name not in known), None)) is not None:
            near = difflib.get_close_matches(strange, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}"
            raise HTTPException(422, f"row {number} has a column {sanitize.line(repr(strange), 50)}; {hint}")
        try:
            found = self._learnt.columns.tensor([row])
        except BadInput as error:
            raise HTTPException(422, f"row {number}: {sanitize.line(str(error), 200)}") from None
        if not found.isfinite().all():
            raise HTTPException(422, f"row {number} has a number that is not finite")
        return found

    def _shown(self, said: torch.Tensor) -> dict[str, Any]:
        labels = self._learnt.labels
        if not labels:
            return {"value": round(float(said[0]), 6)}
        scores = dict(zip(labels, (round(float(each), 6) for each in said.softmax(0)), strict=True))
        label = max(labels, key=lambda each: scores[each])
        return {"label": label, "score": scores[label], "scores": scores}

    def _reason(self, answer: dict[str, Any], why: list[dict[str, Any]]) -> str:
        """`good, as Records is no and Seniority is 20; against it: Debt is 3000`, `more minutes by ...; less by ...`"""
        more, less = (
            " and ".join(
                f"{one['column']} is {'not known' if one['value'] is None else one['value']}"
                for one in [each for each in why if each["weight"] * sign > 0][:NAMED]
            ) or "nothing"
            for sign in (1, -1)
        )  # fmt: skip
        if "label" in answer:
            return f"{answer['label']}, as {more}; against it: {less}"
        return f"more {self._learnt.target}, as {more}; less, as {less}"
