"""Makes the words of messages for one reader, in this one place: `text` and `advice`.

Which names the reader may know is asked of `Names` for each reference; control/authorization.py answers it under the
permissions of a person. The templates are in catalog.py. Knows no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Protocol

from llmsched.core.catalog import CATALOG
from llmsched.core.message import (
    ACTOR,
    ARTIFACT,
    GANG,
    NODE,
    PUBLIC,
    USER,
    WORKLOAD,
    About,
    Arg,
    Message,
    Quote,
    Ref,
    several,
)
from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Option

HIDDEN = {WORKLOAD: "another's workload", GANG: "another's workload", USER: "somebody", ARTIFACT: "a result"}
HIDDEN_MANY = {
    WORKLOAD: "{} workloads of others", GANG: "{} workloads of others", USER: "{} people", ARTIFACT: "{} results",
}  # fmt: skip


class Names(Protocol):
    """What one reader calls things."""

    def name(self, ref: Ref) -> str | None:
        """None for what the reader may not know; unknown kinds are hidden."""


class AllNames:
    """Of a reader who sees everything: the simulator's, and whoever reads a journal. `nodes`: id -> name."""

    def __init__(self, nodes: Mapping[str, str] | None = None) -> None:
        self._nodes = nodes or {}

    def name(self, ref: Ref) -> str | None:
        return self._nodes.get(ref.id, ref.id) if ref.kind == NODE else ref.id


ALL = AllNames()


def text(message: Message | None, names: Names = ALL) -> str:
    """The sentence, for a reader of `names`; "" for none."""
    return "" if message is None else _fill(CATALOG[message.code].text, message, names)


def advice(message: Message | None, names: Names = ALL) -> str:
    """What would help, as the same entry has it; "" where nothing is known to."""
    return "" if message is None else _fill(CATALOG[message.code].advice, message, names)


def fields(template: str) -> list[str]:
    """The arguments that a template names, in order."""
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]


def _fill(template: str, message: Message, names: Names) -> str:
    if "{" not in template:
        return template
    args = dict(message.args)
    return "".join(
        before if name is None else before + _written(args[name], style or "", names)
        for before, name, style, _ in Formatter().parse(template)
    )


def _written(value: Arg, style: str, names: Names) -> str:
    if style == "gpus":
        return gpus(value) if isinstance(value, int) else words(value, names)
    if style.startswith("#"):
        return count(value, style[1:]) if isinstance(value, int) else words(value, names)
    if style.startswith("|"):
        each = [_in_full(one, names) for one in several(value)]
        return style[1:].join(dict.fromkeys(each) if style == "| or " else each)
    if style.startswith(">"):
        found = words(value, names)
        return style[1:] + found if found else ""
    return format(value, style) if style and isinstance(value, int | float) else words(value, names)


def _in_full(value: Arg, names: Names) -> str:
    return amounts(value.resources, value.flavor) if isinstance(value, Option) else words(value, names)


def words(value: Arg, names: Names) -> str:
    """One argument. Several are joined by commas; of those that may not be known their number is told."""
    match value:
        case Ref():
            return refer([value], names)
        case Quote(said):
            return said
        case Message():
            return text(value, names)
        case About(name, message):
            return text(message, names) if names.name(Ref(WORKLOAD, name)) is not None else ""
        case Option(flavor, resources, _):
            return bundle(resources, flavor)
        case Resources():
            return amounts(value)
    if isinstance(value, tuple):
        every = several(value)
        refs = [each for each in every if isinstance(each, Ref)]
        return refer(refs, names) if refs else ", ".join(words(each, names) for each in every)
    return f"{value:g}" if isinstance(value, float) else str(value)


def refer(refs: list[Ref], names: Names) -> str:
    """Names, each once, then how many are hidden."""
    shown: dict[str, None] = {}
    hidden: dict[Ref, None] = {}
    for ref in refs:
        name = names.name(ref)
        if name is None:
            hidden[ref] = None
        else:
            shown[name] = None
    return ", ".join([*shown, *_of_others([*hidden])])


def _of_others(hidden: list[Ref]) -> list[str]:
    if not hidden:
        return []
    kind = hidden[0].kind
    if len(hidden) == 1:
        return [HIDDEN.get(kind, "something")]
    return [HIDDEN_MANY.get(kind, "{} things").format(len(hidden))]


def is_public(ref: Ref) -> bool:
    """Whether everybody may know it: it stands in the cluster file, or did something to the work at hand."""
    return ref.kind in PUBLIC or ref.kind == ACTOR


# --- figures --------------------------------------------------------------------------------------------------------


def gpus(milli: int) -> str:
    """12 or 0.5: thousandths as people write them."""
    return str(milli // MILLI) if milli % MILLI == 0 else f"{milli / MILLI:g}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def bundle(resources: Resources, flavor: str | None) -> str:
    """What one bundle takes first of all: `2 A100`, `0.5 GPU`, `4 CPU`."""
    if resources.gpus_milli:
        return f"{gpus(resources.gpus_milli)} {flavor or 'GPU'}"
    if resources.cpus_milli:
        return f"{gpus(resources.cpus_milli)} CPU"
    return "a place"


def amounts(need: Resources, flavor: str | None = None) -> str:
    """All that is asked for or there: `2 A100, 4 CPUs, 16 GB`."""
    parts = []
    if need.gpus_milli:
        parts.append(f"{gpus(need.gpus_milli)} {flavor or ('GPU' if need.gpus_milli <= MILLI else 'GPUs')}")
    if need.cpus_milli:
        parts.append(f"{gpus(need.cpus_milli)} CPU{'' if need.cpus_milli == MILLI else 's'}")
    if need.memory_bytes:
        parts.append(memory(need.memory_bytes))
    parts += [f"{amount / MILLI:g} {name}" for name, amount in need.custom]
    return ", ".join(parts) or "nothing"


def memory(size: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
