"""What keys have used of models: requests and tokens, of one's own keys, or of all for who may see all."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from llmsched.api import bodies, query
from llmsched.api.callers import Given, Looker
from llmsched.api.routes import REFUSALS
from llmsched.api.usage import DAY_S, day_in, since_in
from llmsched.control.key_usage import Amounts, Question
from llmsched.core.usage import day_of
from llmsched.spec.usage_models import ByKey, KeyUsageLine, KeyUsageView

DAYS_AT_MOST = 3_660  # looked at one by one

router = APIRouter(
    prefix="/api/v1", responses=REFUSALS, dependencies=[Depends(query.only_known)], route_class=bodies.Route
)


@router.get("/usage/keys", response_model=KeyUsageView)
async def key_usage(
    given: Given,
    who: Looker,
    by: Annotated[list[ByKey] | None, Query(max_length=4, description="default: by key and model")] = None,
    since: Annotated[str, Query(max_length=40, description="30d, or a day: 2030-01-31")] = "30d",
    until: Annotated[str | None, Query(max_length=40, description="a day; default: today")] = None,
) -> KeyUsageView:
    """Requests and tokens that endpoints answered, by key, as replicas counted them. Days are UTC."""
    now = given.controller.now
    names: list[ByKey] = list(dict.fromkeys(by or ("key", "model")))
    last = int(now // DAY_S) if until is None else day_in(until, "until")
    question = Question(tuple(names), max(since_in(since, now), last - DAYS_AT_MOST), last)
    user = None if who.permissions.sees_all else who.permissions.person.user
    found = await asyncio.to_thread(given.controller.key_usage.add_up, question, user)
    lines = [_line(dict(zip(names, key, strict=True)), amounts) for key, amounts in found.items()]
    lines.sort(key=lambda line: (line.day or "", -line.prompt_tokens - line.completion_tokens, line.key or ""))
    total = Amounts()
    for amounts in found.values():
        total = total.plus(amounts)
    return KeyUsageView(by=names, since=day_of(question.since), until=day_of(last), lines=lines, total=_line({}, total))


def _line(names: dict[str, str], amounts: Amounts) -> KeyUsageLine:
    shown = names | ({"day": day_of(int(names["day"]))} if "day" in names else {})
    return KeyUsageLine(
        **shown,
        requests=amounts.requests,
        prompt_tokens=amounts.prompt,
        completion_tokens=amounts.completion,
        cached_tokens=amounts.cached,
    )
