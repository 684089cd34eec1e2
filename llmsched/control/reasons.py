"""Messages and reasons for one reader: code, arguments and words, as far as that reader may know them."""

from __future__ import annotations

from typing import Any

from llmsched.core.explain import Reason
from llmsched.core.message import WORKLOAD, About, Arg, Message, Quote, Ref, several
from llmsched.core.render import Names, advice, text
from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Option
from llmsched.spec import http_models


def view(reason: Reason | None, names: Names) -> http_models.ReasonView | None:
    if reason is None:
        return None
    return http_models.ReasonView(
        code=reason.code,
        detail=reason.message.code,
        args=arguments(reason.message, names),
        message=text(reason.message, names),
        counts=dict(reason.counts),
        next_change=advice(reason.message, names),
        eta=reason.eta,
        eta_basis=text(reason.eta_basis, names),
    )


def arguments(message: Message, names: Names) -> dict[str, Any]:
    return {name: _plain(value, names) for name, value in message.args}


def sentence(message: Message, names: Names) -> http_models.Sentence:
    return http_models.Sentence(code=message.code, args=arguments(message, names), text=text(message, names))


def _plain(value: Arg, names: Names) -> Any:
    """JSON. What is referred to has a kind and a name; null where the reader may not know it."""
    match value:
        case Ref():
            return {"kind": value.kind, "name": names.name(value)}
        case Quote(words):
            return words
        case Message():
            return sentence(value, names).model_dump()
        case About(name, message):
            return sentence(message, names).model_dump() if names.name(Ref(WORKLOAD, name)) is not None else None
        case Option(flavor, resources, _):
            return {"flavor": flavor, **amounts(resources).model_dump()}
        case Resources():
            return amounts(value).model_dump()
    return [_plain(each, names) for each in several(value)] if isinstance(value, tuple) else value


def amounts(resources: Resources) -> http_models.Amounts:
    return http_models.Amounts(
        gpus=resources.gpus_milli / MILLI,
        cpus=resources.cpus_milli / MILLI,
        memory_bytes=resources.memory_bytes,
        custom={name: amount / MILLI for name, amount in resources.custom},
    )
