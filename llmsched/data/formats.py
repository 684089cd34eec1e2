"""What the columns of a data set mean: the formats of other tools, recognised by their columns or named by `format:`.

    chat        messages [{role, content}]        also content parts, tool calls, a `tools` and a `system` column
    sharegpt    conversations [{from, value}]     ShareGPT, LLaMA-Factory, axolotl
    alpaca      instruction, input, output        also response, system, history
    prompt      prompt and completion             as texts, or as two lists of messages (TRL)
    preference  chosen and rejected               pairs for `objective: dpo`; sft learns the chosen, if named
    text        text

`recognise` looks at the columns of all rows; `converted` makes of each row what a language model learns from: messages,
text and target, or text. `preferences` makes two of each: an answer that was chosen, and one that was not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmsched.data.messages import Unusable, messages_of, plain_text, tools_of
from llmsched.data.rows import BadRows, Counted, DataError, Row, Rows

# The names that a role goes by where `columns` does not say; the first that is there counts.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "prompt", "sentence", "sentence1", "premise"),
    "text_pair": ("text_pair", "sentence2", "hypothesis"),
    "label": ("label", "labels"),
    "target": ("target", "completion", "response"),
    "messages": ("messages", "conversations", "conversation"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "chosen": ("chosen", "preferred_output", "chosen_response"),
    "rejected": ("rejected", "non_preferred_output", "rejected_response"),
}


class Format(NamedTuple):
    """Roles of a format: those that every row has, and those that may be absent."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "chat": Format(("messages",), ("tools", "system")),
    "sharegpt": Format(("messages",), ("tools", "system")),
    "alpaca": Format(("instruction", "output"), ("input", "system", "history")),
    "prompt": Format(("text", "target"), ("tools",)),
    "preference": Format(("chosen",), ("text", "rejected", "tools", "system", "label")),
    "text": Format(("text",)),
}
_KTO = ("prompt", "completion", "label")


class Columns(NamedTuple):
    """Of all rows: how many have something in a column, and the kinds of value there. In order of appearance."""

    filled: Counter[str]
    kinds: dict[str, set[type]]


def columns_of(rows: Sequence[Row]) -> Columns:
    filled: Counter[str] = Counter()
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            seen = kinds.setdefault(name, set())
            if not is_missing(value):
                filled[name] += 1
                seen.add(type(value))
    return Columns(filled, kinds)


def is_missing(value: Any) -> bool:
    """Nothing, also as pandas and spreadsheets write it: NaN, "nan", a text without a letter."""
    if isinstance(value, str):
        return value.strip() in _NO_TEXT
    return value is None or value == [] or (isinstance(value, float) and value != value)


_NO_TEXT = ("", "nan", "NaN", "<NA>", "#N/A")


def field_of(
    role: str, columns: Mapping[str, str], there: Mapping[str, Any], names: Mapping[str, Sequence[str]] = {}
) -> str | None:
    """The column that plays `role`: the one named, which need not be there, else the first usual one that is, or one of
    `names`."""
    usual = (*USUAL_NAMES.get(role, (role,)), *names.get(role, ()))
    return columns.get(role) or next((name for name in usual if name in there), None)


def recognise(found: Columns, columns: Mapping[str, str], path: str) -> str:
    """The format of a data set for a language model. Raises DataError where it is none that we know, or where a guess
    would teach what nobody meant."""

    def has(role: str) -> bool:
        return field_of(role, columns, found.kinds) in found.kinds

    if bool in found.kinds.get("label", ()) and all(name in found.kinds for name in _KTO):
        raise DataError(
            f"data set {path}: these are answers that were liked or not ({', '.join(found.kinds)}), one a row as KTO "
            "learns from them, which no objective here does; make a file of the liked ones without their label"
        )
    if has("rejected"):
        raise DataError(
            f"data set {path}: these are preference pairs ({', '.join(found.kinds)}), which objective: dpo learns "
            "from; name format: preference to learn the chosen answers alone"
        )
    if has("messages"):
        field = field_of("messages", columns, found.kinds)
        return "chat" if field not in ("conversations", "conversation") and "messages" not in columns else "sharegpt"
    if has("instruction") and has("output"):
        return "alpaca"
    if has("target") and has("text"):
        return "prompt"
    if has("text"):
        field = field_of("text", columns, found.kinds)
        if field == "prompt" and "text" not in columns:
            raise DataError(
                f"data set {path}: a column 'prompt' and no answers to learn (found: {', '.join(found.kinds)}). Say "
                "which column has them with columns: {target: ...}, or name format: text to learn the prompts"
            )
        return "text"
    instead = "messages, conversations, instruction and output, prompt and completion, or text"
    error = missing_column("text", None, found.kinds, path, instead)
    raise DataError(f"{error}, and what is to be learnt of it with {{target: ...}}, if not all")


def missing_column(role: str, named: str | None, there: Mapping[str, Any], path: str, instead: str = "") -> DataError:
    known = f" (recognised are {instead})" if instead else ""
    return DataError(
        f"data set {path}: no column {named or role!r} for the role {role!r}; found: {', '.join(there)}{known}. "
        f"Say which it is with columns: {{{role}: ...}}"
    )


def roles(
    rows: Rows,
    required: Sequence[str],
    optional: Sequence[str],
    columns: Mapping[str, str],
    path: str,
    bad: BadRows,
    names: Mapping[str, Sequence[str]] = {},
) -> Rows:
    """Rows as {role: value}, of the columns of all rows. A row that lacks a required one is bad; one that lacks an
    optional one has None there. `names`: more columns that are taken for a role."""
    found = columns_of(rows)
    strange = next((role for role in columns if role not in (*required, *optional)), None)
    if strange is not None:
        raise DataError(
            f"data set {path}: columns: the role {strange!r} is not read here; expected "
            f"{', '.join((*required, *optional))}"
        )
    fields: dict[str, str] = {}
    for role in (*required, *optional):
        field = field_of(role, columns, found.kinds, names)
        if field in found.kinds:
            fields[role] = str(field)
        elif role in required or role in columns:
            raise missing_column(role, field, found.kinds, path)
    chosen = Rows()
    chosen.notes = list(rows.notes)
    lacking: Counter[str] = Counter()
    for row, place in zip(rows, rows.places, strict=True):
        made = {role: None if _is_absent(role, row.get(field)) else row[field] for role, field in fields.items()}
        if absent := next((role for role in required if made[role] is None), None):
            lacking[absent] += 1
            bad.add(
                place, f"has no {fields[absent]!r} (the {absent})" if fields[absent] != absent else f"has no {absent!r}"
            )
            continue
        lacking.update(role for role in optional if role in made and made[role] is None)
        chosen.add(made, place)
    _one_name_a_number(chosen)
    chosen.class_names = {role: rows.class_names[field] for role, field in fields.items() if field in rows.class_names}
    parts = [f"{len(rows):,} rows"]
    parts += [f"{lacking[role]:,} without {field}" for role, field in fields.items() if 0 < lacking[role] < len(rows)]
    renamed = [f"{role} from {field!r}" for role, field in fields.items() if role != field and role not in columns]
    unused = [name or "one without a name" for name in found.kinds if name not in fields.values() and name[:2] != "__"]
    text = ", ".join(parts) + (f"; {', '.join(renamed)}" if renamed else "")
    chosen.notes.append(Counted(text + (f"; not used: {', '.join(unused[:20])}" if unused else "")))
    return chosen


def _is_absent(role: str, value: Any) -> bool:
    """A list of labels may be empty: a text without an entity."""
    return is_missing(value) and not (role == "label" and isinstance(value, list))


def _one_name_a_number(rows: Rows) -> None:
    """1.0 and 1 are one label, also where a table has them as texts; "1.0" beside "good" is a name."""
    if not rows or "label" not in rows[0]:
        return
    labels = [row["label"] for row in rows]
    if not all(isinstance(label, (int, float)) or _WHOLE.fullmatch(str(label).strip()) for label in labels):
        return
    for row in rows:
        if isinstance(row["label"], str):
            row["label"] = row["label"].strip().partition(".")[0]
        elif isinstance(row["label"], float) and row["label"].is_integer():
            row["label"] = int(row["label"])


_WHOLE = re.compile(r"-?\d+(\.0*)?", re.ASCII)


def converted(rows: Rows, given: str, columns: Mapping[str, str], path: str, bad: BadRows) -> Rows:
    """What a language model learns from each row: {"messages", "tools"}, {"text", "target"} or {"text"}."""
    name = recognise(columns_of(rows), columns, path) if given == "auto" else given
    form = FORMATS[name]
    with_roles = roles(rows, form.required, form.optional, columns, path, bad)
    made = Rows()
    made.notes = [*with_roles.notes[:-1], Counted(f"{path}: {name}: {with_roles.notes[-1]}")]
    for row, place in zip(with_roles, with_roles.places, strict=True):
        try:
            one = _CONVERT[name](row)
        except Unusable as error:
            bad.add(place, str(error))
            continue
        made.add(one, place)
    if name == "preference":
        made.notes.append(f"{path}: the chosen answers are learnt, the rejected ones are left out")
    return made


def preferences(rows: Rows, columns: Mapping[str, str], path: str, bad: BadRows) -> Rows:
    """{"chosen", "rejected"} of each row, each as `converted` gives it."""
    form = FORMATS["preference"]
    required, optional = (*form.required, "rejected"), tuple(role for role in form.optional if role != "rejected")
    with_roles = roles(rows, required, optional, columns, path, bad)
    made = Rows()
    made.notes = [*with_roles.notes[:-1], Counted(f"{path}: preference: {with_roles.notes[-1]}")]
    for row, place in zip(with_roles, with_roles.places, strict=True):
        try:
            pair = {name: _preference({**row, "chosen": row[name]}) for name in ("chosen", "rejected")}
            if pair["chosen"] == pair["rejected"]:
                raise Unusable("has the same answer as chosen and rejected")
        except Unusable as error:
            bad.add(place, str(error))
            continue
        made.add(pair, place)
    return made


def _chat(row: Row) -> Row:
    messages = messages_of(row["messages"], _system(row))
    if not any(each["role"] == "assistant" for each in messages):
        raise Unusable("has no message of the role assistant, so there is nothing to learn")
    return _with_tools({"messages": messages}, row)


def _alpaca(row: Row) -> Row:
    asked = plain_text(row["instruction"], "instruction")
    if row.get("input") is not None:
        asked += "\n\n" + plain_text(row["input"], "input")
    turns: list[tuple[str, str]] = []
    for pair in _history(row.get("history")):
        turns += [("user", plain_text(pair[0], "history")), ("assistant", plain_text(pair[1], "history"))]
    turns += [("user", asked), ("assistant", plain_text(row["output"], "output"))]
    return {"messages": [*_system(row), *({"role": role, "content": text} for role, text in turns)], "alpaca": True}


def _history(value: Any) -> list[list[Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unusable("has a history that is not a list of [question, answer]") from None
    pairs = value or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Unusable("has a history that is not a list of [question, answer]")
    return pairs


def _prompt(row: Row) -> Row:
    prompt, target = row["text"], row["target"]
    if isinstance(prompt, list) or isinstance(target, list):
        return _asked_and_answered(prompt, target, row)
    return {"text": plain_text(prompt, "text"), "target": plain_text(target, "target")}


def _preference(row: Row) -> Row:
    prompt, chosen = row.get("text"), row["chosen"]
    if isinstance(prompt, dict):  # OpenAI's: {"input": {"messages": [...]}}
        prompt = prompt.get("messages")
    if isinstance(chosen, dict):
        chosen = [chosen]
    if isinstance(chosen, list) and (prompt is None or _begins_with(chosen, prompt)):
        return _asked_and_answered(chosen[:-1], chosen[-1:], row)
    if isinstance(chosen, list) or isinstance(prompt, list):
        return _asked_and_answered(prompt, chosen, row)
    if prompt is None:
        raise Unusable("has a chosen answer and no prompt")
    return {"text": plain_text(prompt, "prompt"), "target": plain_text(chosen, "chosen")}


def _asked_and_answered(asked: Any, answered: Any, row: Row) -> Row:
    """Of a completion: what comes before it is not learnt, although the assistant may speak there too."""
    before = [{**each, "learn": False} if each["role"] == "assistant" else each for each in _as_turns(asked, "user")]
    after = _as_turns(answered, "assistant")
    if not any(each["role"] == "assistant" for each in after):
        raise Unusable("has a completion without a message of the role assistant")
    system = _system(row) if not before or before[0]["role"] != "system" else []
    return _with_tools({"messages": [*system, *before, *after]}, row)


def _begins_with(chosen: list[Any], prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and chosen[: len(prompt)] == prompt
    first = next(
        (each for each in chosen if isinstance(each, dict) and each.get("role", each.get("from")) != "system"), {}
    )
    return isinstance(prompt, str) and first.get("content", first.get("value")) == prompt


def _as_turns(value: Any, role: str) -> list[dict[str, Any]]:
    return messages_of(value) if isinstance(value, list) else [{"role": role, "content": plain_text(value, role)}]


def _text(row: Row) -> Row:
    return {"text": plain_text(row["text"], "text")}


def _system(row: Row) -> list[dict[str, Any]]:
    return [] if row.get("system") is None else [{"role": "system", "content": plain_text(row["system"], "system")}]


def _with_tools(made: Row, row: Row) -> Row:
    tools = tools_of(row.get("tools"))
    return {**made, "tools": tools} if tools else made


_CONVERT = {
    "chat": _chat,
    "sharegpt": _chat,
    "alpaca": _alpaca,
    "prompt": _prompt,
    "preference": _preference,
    "text": _text,
}
