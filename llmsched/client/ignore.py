"""What a workdir leaves at home: patterns as Git has them in .gitignore (its manual, "PATTERN FORMAT").

Git's own .gitignore does not count here: it names data and models, too, which a run needs. `.llmschedignore` does, and
`.rayignore`, which means the same. Both stand at the top of the workdir.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FILES = (".llmschedignore", ".rayignore")
_LONGEST = 1 << 20  # bytes of such a file


class Pattern(NamedTuple):
    """`said` as it stands in the file; `brings_back` what an earlier one left out; `of_folders` alone."""

    said: str
    form: re.Pattern[str]
    brings_back: bool
    of_folders: bool


def patterns_of(folder: Path) -> list[Pattern]:
    """Of both files, in order. Raises OSError."""
    found: list[Pattern] = []
    for name in FILES:
        if (file := folder / name).is_file():
            with file.open("rb") as stream:
                lines = stream.read(_LONGEST).decode(errors="replace").split("\n")
            found += filter(None, map(pattern, lines))
    return found


def pattern(line: str) -> Pattern | None:
    """Of one line; None: it says nothing."""
    text = line.removesuffix("\r")
    while text.endswith(" ") and not _is_escaped(text, len(text) - 1):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    brings_back = text.startswith("!")
    body = text[brings_back:]
    of_folders = body.endswith("/")
    body = body.removesuffix("/")
    form = _form(body.removeprefix("/"), is_anchored="/" in body)
    return None if form is None else Pattern(text, form, brings_back, of_folders)


def left_out_by(patterns: Iterable[Pattern], path: str, *, is_folder: bool) -> str:
    """The pattern that leaves out `path` (below the workdir, with "/"), none of whose folders is left out; ""."""
    said = ""
    for each in patterns:
        if (is_folder or not each.of_folders) and each.form.fullmatch(path):
            said = "" if each.brings_back else each.said
    return said


def _is_escaped(text: str, at: int) -> bool:
    before = text[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _form(body: str, *, is_anchored: bool) -> re.Pattern[str] | None:
    """As a regular expression of whole paths; None for one that matches nothing, as an open bracket does."""
    made, at = "" if is_anchored else "(?:.*/)?", 0
    while at < len(body):
        letter = body[at]
        if letter == "*":
            end = at
            while body[end : end + 1] == "*":
                end += 1
            crosses = end - at > 1 and body[at - 1 : at] in ("", "/") and body[end : end + 1] in ("", "/")
            if crosses and end < len(body):
                made, at = made + "(?:.*/)?", end + 1
            else:
                made, at = made + (".*" if crosses else "[^/]*"), end
        elif letter == "?":
            made, at = made + "[^/]", at + 1
        elif letter == "[":
            found = _class(body, at + 1)
            if found is None:
                return None
            made, at = made + f"(?!/){found[0]}", found[1]
        else:
            at += letter == "\\"
            if at == len(body):
                return None
            made, at = made + re.escape(body[at]), at + 1
    return re.compile(made, re.DOTALL)


_NAMED = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "xdigit": "0-9a-fA-F",
}
_NAMED |= {"space": r"\s", "blank": r"\ \t"}


def _class(body: str, at: int) -> tuple[str, int] | None:
    """What stands in brackets from `at` on, as a regular expression, and where they end; None: they do not."""
    negated = body[at : at + 1] in ("!", "^")
    at += negated
    inner, begin = "", at
    while at < len(body):
        if body[at] == "]" and at > begin:
            return (f"[{'^' * negated}{inner}]" if inner else "." if negated else "(?!)"), at + 1
        if named := re.match(r"\[:(\w+):\]", body[at:]):
            if named[1] not in _NAMED:
                return None
            inner, at = inner + _NAMED[named[1]], at + len(named[0])
            continue
        first, at = _letter(body, at)
        if body[at : at + 1] == "-" and body[at + 1 : at + 2] not in ("", "]"):
            last, at = _letter(body, at + 1)
            if first and last and first <= last:
                inner += f"{re.escape(first)}-{re.escape(last)}"
            inner += re.escape(first)  # Git takes the first one for itself, too
        else:
            inner += re.escape(first)
    return None


def _letter(body: str, at: int) -> tuple[str, int]:
    at += body[at] == "\\"
    return body[at : at + 1], at + 1
