"""What is said is data: each sentence is in the catalog, and no way leads round a reference to somebody's name."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from hypothesis import given
from hypothesis import strategies as st

from llmsched.control import reasons
from llmsched.core import decisions, facts, message
from llmsched.core.catalog import CATALOG
from llmsched.core.explain import WAITS
from llmsched.core.message import ACTOR, PRIVATE, PUBLIC, About, Message, Quote, Ref, say, workload, workloads
from llmsched.core.render import advice, fields, text, words

HOUSE = Path(__file__).resolve().parents[2] / "llmsched"
FILES = sorted(file for room in ("core", "control", "api", "sim") for file in (HOUSE / room).rglob("*.py"))


class Said(NamedTuple):
    """A call of `say`: the codes it may have, and the arguments it gives."""

    codes: frozenset[str]
    given: frozenset[str]
    where: str


@cache
def all_calls() -> dict[str, list[tuple[ast.Call, ast.AST, Path]]]:
    """By the name of what is called: each call, with the function or module around it."""
    found: dict[str, list[tuple[ast.Call, ast.AST, Path]]] = {}
    for file in FILES:
        tree = ast.parse(file.read_text())
        around: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                around[child] = node if isinstance(node, ast.FunctionDef) else around.get(node, tree)
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                found.setdefault(name, []).append((node, around.get(node, tree), file))
    return found


def calls(name: str) -> list[tuple[ast.Call, ast.AST, Path]]:
    return all_calls().get(name, [])


def codes_of(given: ast.expr, around: ast.AST) -> frozenset[str]:
    """Every code of the catalog that this expression may be."""
    match given:
        case ast.Constant(value=str(code)):
            return frozenset([code])
        case ast.IfExp(body=body, orelse=orelse):
            return codes_of(body, around) | codes_of(orelse, around)
        case ast.JoinedStr(values=values):
            patterns = [""]
            for part in values:
                if isinstance(part, ast.FormattedValue):
                    known = codes_of(part.value, around) or frozenset([None])
                    patterns = [old + (re.escape(one) if one else r"[a-z_]+") for old in patterns for one in known]
                else:
                    patterns = [old + re.escape(part.value) for old in patterns]  # type: ignore[attr-defined]
            return frozenset(code for code in CATALOG for pattern in patterns if re.fullmatch(pattern, code))
        case ast.Name(id=name):
            assigned = [
                node.value
                for node in ast.walk(around)
                if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == name for target in node.targets)
            ]
            return frozenset().union(*(codes_of(value, around) for value in assigned))
    return frozenset()


@cache
def said() -> list[Said]:
    return [
        Said(
            codes_of(call.args[0], around),
            frozenset(str(each.arg) for each in call.keywords),
            f"{file.relative_to(HOUSE)}:{call.lineno}",
        )
        for call, around, file in calls("say")
    ]


def test_what_is_said_is_in_the_catalog_with_all_that_its_template_names() -> None:
    unread = [one.where for one in said() if not one.codes]
    assert said() and not unread, "these codes cannot be read from the source: name them, or choose between names"
    lacking = [
        f"{one.where}: {code} lacks {missing}"
        for one in said()
        for code in one.codes
        if (missing := {*fields(CATALOG[code].text), *fields(CATALOG[code].advice)} - one.given)
    ]
    assert not lacking


def test_every_sentence_of_the_catalog_is_said_somewhere() -> None:
    unsaid = {*CATALOG} - {code for one in said() for code in one.codes} - {"quote"}
    assert not unsaid


def test_the_code_of_a_reason_is_that_of_its_sentence() -> None:
    compared = set()
    for call, around, file in (*calls("Reason"), *calls("Refused")):
        match call.args:
            case [ast.Constant(value=str(code)), ast.Call(args=[sentence, *_]), *_]:
                assert code in WAITS
                for one in codes_of(sentence, around):
                    assert one.partition(".")[0] == code, f"{file}:{call.lineno}"
                compared.add(code)
    assert compared >= {"nodes", "order", "reservation", "topology"}


# --- names ----------------------------------------------------------------------------------------------------------

QUOTED = {  # whoever reads the sentence wrote these words, or may see whoever did
    "control/readers.py": {"name"},  # stands in the spec of the endpoint that is asked about
    "control/endpoint_names.py": {"mine.name", "other.endpoint.id"},  # that of the same file
    "core/commands.py": {
        "spec.id", "name", "command.name", "new.queue", "spec.queue", "spec.kind", "known.workload.kind", "text",
        "str(wrong)",
    },
    "core/node_commands.py": {"each.id", "wish"},  # of a node, told to an operator
    "core/estimate.py": {"spec.model"},  # told inside an About
    "core/lives.py": {"gang.spec.schedule or ''"},
    "core/message.py": {"text"},
    "core/possible.py": {"spec.id"},  # told who submits it
    "core/stages/place.py": {"group.name"},
    "api/views.py": {"one.stalled"},  # of a gang of the work that is asked for
    "api/event_text.py": {  # of the workload whose story it is
        "event", "message", "outcome", "kind", "name", "target", "words", "reason", "adapter",
        "group.name",
    },
}  # fmt: skip


def test_words_are_quoted_only_where_whoever_reads_them_may_see_who_wrote_them() -> None:
    """A quote is shown as it stands. So each place that makes one is listed here, after somebody has thought of it."""
    found: dict[str, set[str]] = {}
    for name in ("Quote", "quoted"):
        for call, _, file in calls(name):
            place = str(file.relative_to(HOUSE))
            if name == "quoted" and place in ("core/fold_facts.py", "core/lifecycle.py"):
                assert ast.unparse(call.args[0]) == "fact.message"  # what a gang said of itself
                continue
            found.setdefault(place, set()).add(ast.unparse(call.args[0]))
    assert {place: words for place, words in found.items() if words - QUOTED.get(place, set())} == {}


OWN = {  # text fields of facts and decisions that are about the work they belong to, or for everybody to know
    "gang", "workload", "node", "attempt", "by", "words", "message", "event", "outcome", "artifact", "metrics", "kind",
    "name", "uri", "target", "origin", "reason", "memory", "counts", "placement", "configuration", "used",
    "adapter", "reservation", "taken",
}  # fmt: skip


def test_a_field_that_names_anothers_work_is_marked_so() -> None:
    """Events show facts and decisions as data: what is marked is shown by its name only to who may see it."""
    marked: Counter[str] = Counter()
    for cls in (*get_args(facts.Fact), *get_args(decisions.Decision)):
        for name, hint in get_type_hints(cls, include_extras=True).items():
            parts = [hint, *get_args(hint)]
            if any(get_origin(part) is Annotated for part in parts):
                marked[f"{cls.__name__}.{name}"] += 1
            elif str in flat(hint):
                assert name in OWN, f"{cls.__name__}.{name}: mark it with message.Named, or add it to OWN"
    assert [*marked] == [
        "Submitted.met", "RolledBack.by", "RolledBack.met", "RolledBack.uri", "RolledBack.origin",
        "DrainBegun.by", "DrainEnded.by", "AdapterLoaded.uri",
        "Archived.workloads", "Archived.replicas", "Nominate.victims", "Resize.beneficiary", "Preempt.beneficiary",
        "LoadAdapter.uri",
    ]  # fmt: skip


def flat(hint: Any) -> set[Any]:
    return {hint}.union(*(flat(part) for part in get_args(hint)))


class NoNames:
    """Of a reader who may know no name that somebody owns."""

    def name(self, ref: Ref) -> str | None:
        return ref.id if ref.kind in PUBLIC else None


def test_there_are_no_arguments_but_numbers_amounts_and_references() -> None:
    """mypy holds every `say` against `Arg`; a bare string is none, so a name can only be told as a reference."""
    assert str not in flat(message.Arg)
    assert {each.__name__ for each in flat(message.Arg) if isinstance(each, type)} >= {"Ref", "Quote", "About"}


SECRET = "planted"
REFERENCES = st.sampled_from([Ref(kind, SECRET) for kind in (*PRIVATE, ACTOR, "new kind")])
HIDDEN = st.one_of(
    REFERENCES,
    st.lists(REFERENCES, min_size=1, max_size=3).map(tuple),
    st.builds(About, st.just(SECRET), st.just(say("quote", text=Quote(SECRET)))),
)


@given(code=st.sampled_from(sorted(CATALOG)), data=st.data())
def test_no_sentence_shows_what_its_reader_may_not_know(code: str, data: st.DataObject) -> None:
    entry = CATALOG[code]
    names = dict.fromkeys([*fields(entry.text), *fields(entry.advice)])
    said = Message(code, tuple((name, data.draw(HIDDEN)) for name in names))
    for shown in (text(said, NoNames()), advice(said, NoNames()), reasons.sentence(said, NoNames()).model_dump_json()):
        assert SECRET not in shown


def test_many_hidden_names_are_a_number() -> None:
    three = workloads(["a", "b", "a", "c"])
    assert words(three, NoNames()) == "3 workloads of others"
    assert words(three[:1], NoNames()) == "another's workload"
    assert text(say("order.behind", who=workload("a")), NoNames()) == (
        "waits behind another's workload, which is first in line"
    )
