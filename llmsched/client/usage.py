"""What was used, asked of a controller: GPU-hours of work, and tokens of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from llmsched.client.transport import Transport
    from llmsched.spec.usage_models import KeyUsageView, UsageView


class UsageQuestions:
    _http: Transport

    async def usage(
        self, *, by: Sequence[str] = ("user", "queue"), since: str = "30d", until: str | None = None, limit: int = 1_000
    ) -> UsageView:
        """GPU-hours that were held, by any of user, queue, workload, day and flavor, of whole days (UTC) from `since`
        ("30d" ago, or "2030-01-31") to `until`; at most `limit` lines, the largest. `exact` of a line has whole
        numbers, which add up. Raises RequestError."""
        from llmsched.spec.usage_models import UsageView

        params: dict[str, Any] = {"by": list(by), "since": since, "limit": limit} | ({"until": until} if until else {})
        return await self._http.ask(UsageView, "GET", "/api/v1/usage", params=params)

    async def key_usage(
        self, *, by: Sequence[str] = ("key", "model"), since: str = "30d", until: str | None = None
    ) -> KeyUsageView:
        """Requests and tokens that endpoints answered, by any of key, user, model and day, of whole days (UTC) as of
        `usage`: of one's own keys, of all as an auditor or operator. Raises RequestError."""
        from llmsched.spec.usage_models import KeyUsageView

        params: dict[str, Any] = {"by": list(by), "since": since} | ({"until": until} if until else {})
        return await self._http.ask(KeyUsageView, "GET", "/api/v1/usage/keys", params=params)

    async def usage_csv(
        self, *, by: Sequence[str] = ("user", "queue"), since: str = "30d", until: str | None = None
    ) -> str:
        """All lines of `usage` as CSV with a header: the names of `by`, then hours of GPUs and cost. Raises
        RequestError."""
        params: dict[str, Any] = {"by": list(by), "since": since, "limit": 200_000, "format": "csv"}
        params |= {"until": until} if until else {}
        path = f"/api/v1/usage?{urlencode(params, doseq=True)}"
        return b"".join([piece async for piece in self._http.pieces(path)]).decode()
