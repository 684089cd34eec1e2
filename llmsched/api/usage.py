"""How much was held, by whom, and what it cost: of the work that who asks may see."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from llmsched.api import query
from llmsched.api.callers import Given, Looker
from llmsched.api.routes import REFUSALS
from llmsched.control.usage import Question
from llmsched.core.usage import HOUR_MS, MICROS, Amounts, day_of
from llmsched.errors import RequestError
from llmsched.spec.quantities import parse_duration
from llmsched.spec.usage_models import By, Micros, UsageLine, UsageView

HOUR = HOUR_MS * 1000  # in GPU-microseconds
DAY_S = 86_400
LINES_AT_MOST = 200_000

router = APIRouter(prefix="/api/v1", responses=REFUSALS, dependencies=[Depends(query.only_known)])


@router.get("/usage")
async def usage(
    given: Given,
    who: Looker,
    by: Annotated[list[By] | None, Query(max_length=5, description="default: by user and queue")] = None,
    since: Annotated[str, Query(max_length=40, description="30d, or a day: 2030-01-31")] = "30d",
    until: Annotated[str | None, Query(max_length=40, description="a day; default: today")] = None,
    limit: Annotated[int, Query(ge=1, le=LINES_AT_MOST, description="lines at most")] = 1_000,
) -> UsageView:
    """GPU-hours of the work that one may see, from the journal: own, borrowed, and of both what went to starting and to
    work that had to be done again; with what it cost where flavors have a price. Days are UTC."""
    today = int(given.controller.now // DAY_S)
    names: list[By] = list(dict.fromkeys(by or ("user", "queue")))
    question = Question(
        tuple(names), _since(since, given.controller.now), today if until is None else _day(until, "until")
    )
    found = await given.controller.usage(who.permissions, question)
    lines = [_line(amounts, **dict(zip(names, key, strict=True))) for key, amounts in found.items()]
    if "day" in names:
        lines.sort(key=lambda line: (line.day or "", -line.gpu_hours, *(getattr(line, name) for name in names)))
    else:
        lines.sort(key=lambda line: (-line.gpu_hours, *(getattr(line, name) for name in names)))
    total = Amounts()
    for amounts in found.values():
        total = total.plus(amounts)
    if len(lines) > limit:
        least = {id(line) for line in sorted(lines, key=lambda line: -line.gpu_hours)[limit:]}
        lines = [line for line in lines if id(line) not in least]
    return UsageView(
        by=names,
        since=day_of(question.since),
        until=day_of(question.until),
        lines=lines,
        left_out=len(found) - len(lines),
        total=_line(total),
    )


def _since(text: str, now: float) -> int:
    """The first day: of that long ago, or the one that is named. Raises RequestError."""
    try:
        return max(0, int((now - parse_duration(text)) // DAY_S))
    except ValueError:
        return _day(text, "since")


def _day(text: str, name: str) -> int:
    try:
        return max(0, (date.fromisoformat(text) - date(1970, 1, 1)).days)
    except ValueError:
        expected = "a day such as 2030-01-31" + (", or how long ago: 30d" if name == "since" else "")
        raise RequestError(f'{name}: expected {expected}, found "{text}".', code="since", http_status=422) from None


def _line(amounts: Amounts, **names: str) -> UsageLine:
    return UsageLine(
        **names,
        gpu_hours=amounts.held / HOUR,
        own=amounts.own / HOUR,
        borrowed=amounts.borrowed / HOUR,
        starting=amounts.starting / HOUR,
        lost=amounts.lost / HOUR,
        cost=amounts.cost / MICROS if amounts.cost else None,
        exact=Micros(**amounts._asdict()),
    )
