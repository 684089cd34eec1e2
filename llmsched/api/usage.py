"""How much was held, by whom, and what it cost: of the work that who asks may see.

A hundred thousand lines are sorted and written in threads, some at a time: the loop answers others meanwhile.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from heapq import nlargest
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from llmsched.api import bodies, query
from llmsched.api.callers import Given, Looker
from llmsched.api.routes import REFUSALS
from llmsched.control import garbage
from llmsched.control.usage import Question
from llmsched.core.usage import HOUR_MS, MICROS, Amounts, day_of
from llmsched.errors import RequestError
from llmsched.spec.quantities import parse_duration
from llmsched.spec.usage_models import By, UsageLine, UsageView

HOUR = HOUR_MS * 1000  # in GPU-microseconds
DAY_S = 86_400
LINES_AT_MOST = 200_000
LINES_AT_ONCE = 500  # written without letting others of the process in
FIGURES = ("gpu_hours", "own", "borrowed", "starting", "lost", "excess", "cost")

router = APIRouter(
    prefix="/api/v1", responses=REFUSALS, dependencies=[Depends(query.only_known)], route_class=bodies.Route
)


@router.get("/usage", response_model=UsageView)
async def usage(
    given: Given,
    who: Looker,
    by: Annotated[list[By] | None, Query(max_length=5, description="default: by user and queue")] = None,
    since: Annotated[str, Query(max_length=40, description="30d, or a day: 2030-01-31")] = "30d",
    until: Annotated[str | None, Query(max_length=40, description="a day; default: today")] = None,
    limit: Annotated[int, Query(ge=1, le=LINES_AT_MOST, description="lines at most")] = 1_000,
    form: Annotated[Literal["json", "csv"], Query(alias="format", description="csv: the lines alone")] = "json",
) -> StreamingResponse:
    """GPU-hours of the work that one may see, from the journal: own, borrowed, and of both what went to starting and to
    work that had to be done again; what was taken beyond a gang; with what it cost where flavors have a price. Days are
    UTC."""
    today = int(given.controller.now // DAY_S)
    names: list[By] = list(dict.fromkeys(by or ("user", "queue")))
    question = Question(
        tuple(names), since_in(since, given.controller.now), today if until is None else day_in(until, "until")
    )
    found = await given.controller.usage(who.permissions, question)
    with garbage.paused():
        lines = await asyncio.to_thread(_largest, names, found, limit)
    if form == "csv":
        return StreamingResponse(_csv(names, lines), media_type="text/csv; charset=utf-8")
    around = {
        "by": names,
        "since": day_of(question.since),
        "until": day_of(question.until),
        "left_out": len(found) - len(lines),
        "total": _line(await asyncio.to_thread(_total, found)).model_dump(mode="json"),
    }
    return StreamingResponse(_json(around, names, lines), media_type="application/json")


Line = tuple[tuple[str, ...], Amounts]


def _largest(names: Sequence[By], found: Mapping[tuple[str, ...], Amounts], limit: int) -> list[Line]:
    """Those that held most, the largest first; where days are asked for, day by day."""
    lines = nlargest(limit, found.items(), key=lambda line: line[1].held) if limit < len(found) else [*found.items()]
    lines.sort(key=lambda line: (-line[1].held, line[0]))
    if "day" in names:
        day = names.index("day")
        lines.sort(key=lambda line: line[0][day])
    return lines


def _total(found: Mapping[tuple[str, ...], Amounts]) -> Amounts:
    return Amounts(*map(sum, zip(*found.values(), strict=True)))


def _json(around: Mapping[str, Any], names: Sequence[By], lines: Sequence[Line]) -> Iterator[str]:
    """A UsageView, without making a model of each line."""
    blank, is_first = UsageLine().model_dump(mode="json"), True
    yield json.dumps(around).removesuffix("}") + ', "lines": ['
    for some in _portions(lines):
        written = [json.dumps(blank | dict(zip(names, key, strict=True)) | _figures(amounts)) for key, amounts in some]
        yield ("" if is_first else ", ") + ", ".join(written)
        is_first = False
    yield "]}"


def _csv(names: Sequence[By], lines: Sequence[Line]) -> Iterator[str]:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((*names, *FIGURES))
    for some in _portions(lines):
        rows.writerows([(*key, *_written(amounts)) for key, amounts in some])
        yield text.getvalue()
        text.seek(text.truncate(0))
    yield text.getvalue()


def _portions(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    for start in range(0, len(lines), LINES_AT_ONCE):
        yield lines[start : start + LINES_AT_ONCE]


def _written(amounts: Amounts) -> list[str]:
    """As FIGURES names them. Of a hundred thousand lines each figure counts, and most are 0."""
    held, own, *rest = _hours(amounts)
    first = _decimal(held)
    return [first, first if own == held else _decimal(own), *map(_decimal, rest)]


def _decimal(hours: float | None) -> str:
    if not hours:
        return "" if hours is None else "0"
    return f"{hours:.9f}".rstrip("0").rstrip(".")


def since_in(text: str, now: float) -> int:
    """The first day: of that long ago, or the one that is named. Raises RequestError."""
    try:
        return max(0, int((now - parse_duration(text)) // DAY_S))
    except ValueError:
        return day_in(text, "since")


def day_in(text: str, name: str) -> int:
    try:
        return max(0, (date.fromisoformat(text) - date(1970, 1, 1)).days)
    except ValueError:
        expected = "a day such as 2030-01-31" + (", or how long ago: 30d" if name == "since" else "")
        raise RequestError(f'{name}: expected {expected}, found "{text}".', code="since", http_status=422) from None


def _line(amounts: Amounts) -> UsageLine:
    return UsageLine(**_figures(amounts))


def _figures(amounts: Amounts) -> dict[str, Any]:
    return {**dict(zip(FIGURES, _hours(amounts), strict=True)), "exact": amounts._asdict()}


def _hours(amounts: Amounts) -> tuple[float | None, ...]:
    """As FIGURES names them."""
    own, borrowed, starting, lost, cost, excess = amounts
    hours = ((own + borrowed) / HOUR, own / HOUR, borrowed / HOUR, starting / HOUR, lost / HOUR, excess / HOUR)
    return *hours, cost / MICROS if cost else None
