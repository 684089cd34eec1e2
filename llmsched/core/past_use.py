"""What a queue has used in the past, each second weighing half as much per half-life gone by; and when that is counted.

Counts are rare, so that a share that past use corrects stands still between them. Scores only, never a ledger.
"""

from __future__ import annotations

from math import floor, log

from llmsched.core.records import QueueUse

HOUR_S = 3600.0
COUNTS_A_HALF_LIFE = 16  # of long half-lives; never more than one an hour, but for half-lives shorter than that


def last_count(now: float, half_life: float) -> float:
    """When past use was counted last: every `period_s` since time zero, so that it depends on the clock alone."""
    return _number(now, half_life) * period_s(half_life)


def next_count(now: float, half_life: float) -> float:
    return (_number(now, half_life) + 1) * period_s(half_life)


def period_s(half_life: float) -> float:
    """Seconds from one count to the next."""
    return min(half_life, max(HOUR_S, half_life / COUNTS_A_HALF_LIFE))


def _number(now: float, half_life: float) -> int:
    period = period_s(half_life)
    number = floor(now / period)
    while (number + 1) * period <= now:  # the moment of a count belongs to that count, whatever division makes of it
        number += 1
    while number * period > now:
        number -= 1
    return number


def decayed(use: QueueUse, now: float, half_life: float) -> float:
    """GPU-milli-seconds of a queue, at a time since which it holds what it does."""
    factor = float(0.5 ** ((now - use.decayed_at) / half_life))
    held = use.gpus_milli - use.promised_milli
    return use.decayed * factor + held * half_life / log(2) * (1.0 - factor)


def bring_up_to(use: QueueUse, now: float, half_life: float) -> None:
    """Before what it holds changes."""
    if half_life > 0 and use.decayed_at < now:
        at = last_count(now, half_life)
        if use.decayed_at < at:
            use.counted = decayed(use, at, half_life)
        use.decayed = decayed(use, now, half_life)
    use.decayed_at = now


def counted(use: QueueUse, now: float, half_life: float) -> float:
    """GPU-milli-seconds as they stood when they were counted last."""
    at = last_count(now, half_life)
    return decayed(use, at, half_life) if use.decayed_at < at else use.counted


def weighed_window_s(half_life: float, window: float) -> float:
    """Seconds that full use of the whole window counts for, after decay."""
    kept = 1.0 - float(0.5 ** (window / half_life)) if window > 0 else 1.0
    return half_life / log(2) * kept
