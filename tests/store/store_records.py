"""Hypothesis strategies for any record, from its type hints."""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from llmsched.core.message import About, Message, Quote, Ref
from llmsched.core.resources import Resources
from llmsched.core.workload import Option
from llmsched.store.codec import DECISIONS, FACTS


def messages_of(arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Message]:
    return st.builds(Message, TEXT, st.dictionaries(TEXT, arguments, max_size=2).map(lambda args: tuple(args.items())))


NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**40), 2**40))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(-(2**40), 2**40)
AMOUNTS = st.builds(Resources, WHOLE, WHOLE, WHOLE, st.lists(st.tuples(TEXT, WHOLE), max_size=2).map(tuple))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)

LEAVES = st.booleans() | NUMBERS | st.builds(Ref, TEXT, TEXT) | st.builds(Quote, TEXT) | AMOUNTS
ARGUMENTS = st.recursive(
    LEAVES | st.builds(Option, st.none() | TEXT, AMOUNTS),
    lambda inner: (
        st.lists(inner, max_size=2).map(tuple) | messages_of(inner) | st.builds(About, TEXT, messages_of(inner))
    ),
    max_leaves=4,
)
MESSAGES = messages_of(ARGUMENTS)


@cache
def any_record(hint: Any) -> st.SearchStrategy[Any]:
    if hint is Message:
        return MESSAGES
    origin, args = get_origin(hint), get_args(hint)
    simple = {str: TEXT, bool: st.booleans(), int: st.integers(-(2**60), 2**60), float: NUMBERS, Any: PLAIN}
    if hint in simple:
        return simple[hint]
    if hint is type(None):
        return st.none()
    if origin in (Union, types.UnionType):
        return st.one_of([any_record(arg) for arg in args])
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return st.lists(any_record(args[0]), max_size=2).map(tuple)
        return st.tuples(*[any_record(arg) for arg in args])
    if origin is list:
        return st.lists(any_record(args[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(TEXT, any_record(args[1]), max_size=2)
    hints = get_type_hints(hint)
    names = [item.name for item in dataclasses.fields(hint)] if dataclasses.is_dataclass(hint) else hint._fields
    return st.fixed_dictionaries({name: any_record(hints[name]) for name in names}).map(lambda values: hint(**values))


def any_entry() -> st.SearchStrategy[Any]:
    return st.sampled_from(FACTS + DECISIONS).flatmap(any_record)
