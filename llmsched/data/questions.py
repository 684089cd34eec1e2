"""What a model is asked about a row: which columns its task reads, and the question that a row makes.

The roles are those of the table in `tasks.py`. A language model is asked a list of messages, or a text. Of a task that
reads several roles, those with "?" go along where a row has them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from llmsched.data.formats import field_of, is_missing, missing_column
from llmsched.data.messages import Unusable, messages_of, plain_text
from llmsched.data.rows import DataError, Row
from llmsched.data.tasks import KINDS

_INSTEAD = {"text": ("messages", "text")}  # of a task that answers chats: the first that is there
_TEXTS = ("text", "text_pair")


def columns_of(task: str, there: Mapping[str, Any], columns: Mapping[str, str], path: str) -> dict[str, str]:
    """{role: column} of a data set with the columns `there`; `columns` are those that its spec names. Raises DataError:
    there is none to ask, or one that is named is not there."""
    kind = KINDS[task]
    chats = "chat/completions" in kind.answers
    of_one = kind.reads[:1] if "embeddings" in kind.answers else kind.reads  # it learns from pairs
    reads = [(_INSTEAD.get(role, (role,)) if chats else (role.removesuffix("?"),), role[-1:] != "?") for role in of_one]
    known = [role for roles, _ in reads for role in roles]
    if strange := next((role for role in columns if role not in known), None):
        raise DataError(
            f"data set {path}: columns: the role {strange!r} is not read by {task}; expected {', '.join(known)}"
        )
    chosen: dict[str, str] = {}
    for roles, is_needed in reads:
        named = [role for role in roles if role in columns] or roles
        found = {role: str(column) for role in named if (column := field_of(role, columns, there, kind.names)) in there}
        if not found and (is_needed or named[0] in columns):
            raise missing_column(named[-1], columns.get(named[-1]), there, path)
        chosen |= dict(list(found.items())[:1])
    return chosen


def check_keep(keep: Sequence[str], there: Mapping[str, Any], path: str) -> None:
    """`keep` are the columns of the input that go along. Raises DataError for one that is not there."""
    if strange := next((name for name in keep if name not in there), None):
        near = difflib.get_close_matches(strange, there, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data set {path}: keep: no column {strange!r}; found: {', '.join(there)}.{meant}")


def question(row: Row, columns: Mapping[str, str], task: str) -> Row:
    """{role: its value} of one row. Raises Unusable, in words that go on after the place of the row."""
    asked: Row = {}
    for role, column in columns.items():
        value = row.get(column)
        if is_missing(value):
            if f"{role}?" in KINDS[task].reads:
                continue
            raise Unusable(f"has no {column!r}" + (f" (the {role})" if column != role else ""))
        asked[role] = messages_of(value) if role == "messages" else plain_text(value, role) if role in _TEXTS else value
    return asked
