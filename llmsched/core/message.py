"""What is said, as data: a code of the catalog and typed arguments. Nothing here is a sentence.

A stage writes `say("order.behind", who=workload("tune"))`; `render.py` makes the words, for one reader, under that
reader's permissions. So no argument is a bare string: what belongs to somebody is named by a `Ref`, and which names a
reader may see is asked where the words are made. Words that the workload at hand or its owner wrote are a `Quote`:
they are told to whoever sees that workload, and to nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, cast

from llmsched.core.resources import Resources
from llmsched.core.workload import Option

# Kinds of references. Those of PRIVATE have an owner; the others stand in the cluster file, for all to read.
WORKLOAD, GANG, USER, ARTIFACT = PRIVATE = ("workload", "gang", "user", "artifact")
ACTOR = "actor"  # a user who did something to the work at hand: told to whoever sees that work
QUEUE, NODE, RESERVATION, FLAVOR, LEVEL, NODE_TYPE, COHORT, LABEL = PUBLIC = (
    "queue", "node", "reservation", "flavor", "level", "node type", "cohort", "label",
)  # fmt: skip


class Ref(NamedTuple):
    """Something that has a name: the only way to name it."""

    kind: str
    id: str


class Quote(NamedTuple):
    """Words that the workload at hand wrote, or its owner in its spec or request."""

    text: str


class Message(NamedTuple):
    """`code` is a key of the catalog. `args` are its arguments by name."""

    code: str
    args: tuple[tuple[str, Arg], ...] = ()

    def inner(self, name: str) -> Message:
        """The message that is its argument `name`."""
        found = dict(self.args)[name]
        assert isinstance(found, Message), (self.code, name)
        return found


class About(NamedTuple):
    """What is said of another workload: nothing at all to whoever may not see that workload."""

    workload: str
    message: Message


class Named(NamedTuple):
    """Marks a field of a fact or decision that names other work than its own: Annotated[str, Named(GANG)]."""

    kind: str


GangName = Annotated[str, Named(GANG)]
WorkloadName = Annotated[str, Named(WORKLOAD)]
UserName = Annotated[str, Named(USER)]  # who did something to no work
ArtifactUri = Annotated[str, Named(ARTIFACT)]  # where the result of other work lies: its path has that work's name
Arg = int | float | Ref | Quote | Message | About | Option | Resources | tuple["Arg", ...]


def say(code: str, /, **args: Arg) -> Message:
    return Message(code, tuple(args.items()))


def quoted(text: str) -> Message | None:
    """What a workload said of itself; None when it said nothing."""
    return say("quote", text=Quote(text)) if text else None


def workload(name: str) -> Ref:
    return Ref(WORKLOAD, name)


def workloads(names: Iterable[str]) -> tuple[Ref, ...]:
    """Each once, in order."""
    return tuple(Ref(WORKLOAD, name) for name in dict.fromkeys(names))


def queue(name: str) -> Ref:
    return Ref(QUEUE, name)


def several(value: Arg) -> list[Arg]:
    """The arguments in a plain tuple; none of what is one thing."""
    return list(cast("tuple[Arg, ...]", value)) if type(value) is tuple else []


# --- JSON ---------------------------------------------------------------------------------------------------------
# One key says what an argument is: {"ref": ["workload", "tune"]}, {"quote": "..."}, {"say": [code, {...}]},
# {"about": ["tune", [code, {...}]]}, {"option": [...]}, {"amounts": [...]}, {"all": [...]}; numbers are themselves.


def to_data(message: Message) -> list[Any]:
    return [message.code, {name: _arg_to_data(value) for name, value in message.args}]


def from_data(data: Any) -> Message:
    """Raises ValueError for what `to_data` never makes."""
    match data:
        case [str(code), dict(args)]:
            return Message(code, tuple((str(name), _arg_from_data(value)) for name, value in args.items()))
    raise ValueError(f"no message: {str(data)[:60]!r}")


def _arg_to_data(value: Arg) -> Any:
    match value:
        case Ref() as ref:
            return {"ref": [ref.kind, ref.id]}
        case Quote(text):
            return {"quote": text}
        case Message() as message:
            return {"say": to_data(message)}
        case About(name, message):
            return {"about": [name, to_data(message)]}
        case Option(flavor, amounts, speedup):
            return {"option": [flavor, _amounts(amounts), *([[list(each) for each in speedup]] if speedup else [])]}
        case Resources() as amounts:
            return {"amounts": _amounts(amounts)}
    return {"all": [_arg_to_data(each) for each in several(value)]} if isinstance(value, tuple) else value


def _arg_from_data(data: Any) -> Arg:
    match data:
        case int() | float():
            return data
        case {"ref": [str(kind), str(name)]}:
            return Ref(kind, name)
        case {"quote": str(text)}:
            return Quote(text)
        case {"say": message}:
            return from_data(message)
        case {"about": [str(name), message]}:
            return About(name, from_data(message))
        case {"option": [str() | None as flavor, amounts]}:
            return Option(flavor, _resources(amounts))
        case {"option": [str() | None as flavor, amounts, [*curve]]}:
            return Option(flavor, _resources(amounts), tuple((int(size), float(rate)) for size, rate in curve))
        case {"amounts": amounts}:
            return _resources(amounts)
        case {"all": [*values]}:
            return tuple(_arg_from_data(each) for each in values)
    raise ValueError(f"no argument of a message: {str(data)[:60]!r}")


def _amounts(it: Resources) -> list[Any]:
    return [it.gpus_milli, it.cpus_milli, it.memory_bytes, [list(each) for each in it.custom]]


def _resources(data: Any) -> Resources:
    match data:
        case [int(gpus), int(cpus), int(memory), [*custom]]:
            return Resources(gpus, cpus, memory, tuple((str(name), int(amount)) for name, amount in custom))
    raise ValueError(f"no amounts: {str(data)[:60]!r}")
