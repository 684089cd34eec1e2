"""What an owner is answered about use: GPU-hours by user, queue, workload and day, and tokens by key and model."""

from __future__ import annotations

from typing import Literal

from llmsched.spec.http_models import Reply

By = Literal["user", "queue", "workload", "day", "flavor"]
ByKey = Literal["key", "user", "model", "day"]


class Micros(Reply):
    """Whole numbers, which add up exactly: GPU-microseconds, and millionths of a price for `cost`."""

    own: int = 0
    borrowed: int = 0
    starting: int = 0
    lost: int = 0
    cost: int = 0
    excess: int = 0


class UsageLine(Reply):
    """Hours of GPUs. `own` and `borrowed` are all that was held, `starting` and `lost` parts of it: before attempts
    ran, and work that had to be done again. `excess` was taken beyond what gangs were given. What was not asked for in
    `by` is null."""

    day: str | None = None  # 2030-01-31, UTC
    user: str | None = None
    queue: str | None = None
    workload: str | None = None  # its name: all runs together
    flavor: str | None = None
    gpu_hours: float = 0.0
    own: float = 0.0
    borrowed: float = 0.0
    starting: float = 0.0
    lost: float = 0.0
    excess: float = 0.0
    cost: float | None = None  # at the prices of then; null where nothing had one
    exact: Micros = Micros()


class UsageView(Reply):
    """Of whole days (UTC), `since` and `until` included. `total` is of all lines, also of those `left_out`, which held
    the least."""

    by: list[By]
    since: str
    until: str
    lines: list[UsageLine]
    left_out: int = 0
    total: UsageLine


class KeyUsageLine(Reply):
    """`key` is the id of a token (`llmsched token list`), or of work that calls. `cached_tokens` are those of prompts
    that were not read again. What was not asked for in `by` is null."""

    day: str | None = None  # 2030-01-31, UTC
    key: str | None = None
    user: str | None = None  # whose key it is
    model: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class KeyUsageView(Reply):
    """Of whole days (UTC), `since` and `until` included."""

    by: list[ByKey]
    since: str
    until: str
    lines: list[KeyUsageLine]
    total: KeyUsageLine
