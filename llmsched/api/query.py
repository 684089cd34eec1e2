"""The query of a request: what its route does not have is refused, as a misspelled filter would list everything."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.dependencies.models import Dependant
from starlette.requests import HTTPConnection

from llmsched.errors import SpecError
from llmsched.spec.validation import nearest


async def only_known(request: HTTPConnection) -> None:
    """Raises SpecError. A dependency of every route of a router; no thread is needed for it."""
    if not request.query_params:
        return
    known = sorted(_names(request.scope["route"].dependant))
    for name in request.query_params:
        if name in known:
            continue
        close = nearest(name, known)
        hint = f'Did you mean "{close}"?' if close else f"It has {', '.join(known) or 'none'}."
        raise SpecError(f'this route has no query parameter "{name}".', code="unknown_parameter", hint=hint)


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for one in dependant.dependencies:
        yield from _names(one)
