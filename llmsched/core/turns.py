"""The turns of the clock: the moments at which time alone gives others a right to what somebody holds.

A reservation opens or closes, or past use is counted by which shares are corrected. A pair of gangs that has exchanged
a place before such a moment may do so once more after it (exchanges.py).
"""

from __future__ import annotations

from llmsched.core import cron
from llmsched.core.configuration import Configuration, Reservation
from llmsched.core.fair import GUARANTEE
from llmsched.core.past_use import last_count


def has_turned(configuration: Configuration, since: float, now: float) -> bool:
    """Whether there was such a moment after `since`, and not after `now`."""
    scheduling = configuration.scheduling
    half_life = scheduling.usage_half_life_s
    corrects = half_life > 0 and scheduling.usage_k > 0 and scheduling.fair_share in (None, GUARANTEE)
    if corrects and last_count(now, half_life) > since:
        return True
    return any(_opens_or_closes(reservation, since, now) for reservation in configuration.reservations)


def _opens_or_closes(reservation: Reservation, since: float, now: float) -> bool:
    lasts = reservation.duration_s
    if reservation.repeat is None:
        return any(since < moment <= now for moment in (reservation.start, reservation.start + lasts))
    for after, later in ((since, 0.0), (since - lasts, lasts)):
        due = cron.next_due(reservation.repeat, max(after, reservation.start - 60.0))
        if due is not None and due + later <= now:
            return True
    return False
