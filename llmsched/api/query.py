"""The query of a request: what its route does not have is refused, as a misspelled filter would list everything, and so
is what stands there twice and counts once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args, get_origin

from fastapi.dependencies.models import Dependant
from starlette.requests import HTTPConnection

from llmsched.errors import SpecError
from llmsched.spec.validation import nearest


async def only_known(request: HTTPConnection) -> None:
    """Raises SpecError. A dependency of every route of a router; no thread is needed for it."""
    if not request.query_params:
        return
    known = dict(sorted(_names(request.scope["route"].dependant)))
    for name in request.query_params:
        if name in known:
            if not known[name] and len(request.query_params.getlist(name)) > 1:
                raise SpecError(f'"{name}" is in the query twice.', code="repeated_key", hint="Write it once.")
            continue
        close = nearest(name, known)
        hint = f'Did you mean "{close}"?' if close else f"It has {', '.join(known) or 'none'}."
        raise SpecError(f'this route has no query parameter "{name}".', code="unknown_parameter", hint=hint)


def _names(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """And whether it is a list, which is written as often as it has items."""
    for field in dependant.query_params:
        wanted = field.field_info.annotation
        yield field.alias, any(get_origin(each) is list for each in (wanted, *get_args(wanted)))
    for one in dependant.dependencies:
        yield from _names(one)
