"""The contract pages as data: their examples in order, their tables, and what an example's answer must be like."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastapi.routing import APIRoute, APIWebSocketRoute

from llmsched import errors
from llmsched.api import app
from llmsched.gateway import refusals

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "llmsched" / "api" / "README.md"
SDK = ROOT / "llmsched" / "client" / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)

# Of these the pages show the form only: they differ from run to run or from machine to machine.
VARYING = {
    "seq", "epoch", "version", "at", "since", "eta", "started_at", "submitted_at", "finished_at", "queued_since",
    "launched_at", "set_at", "made_at", "set_by", "user", "by", "artifact", "spec_sha256", "ray_version",
    "start_time", "end_time", "url",
    "waited_s", "starting_s", "running_s", "until", "gpu_hours", "own", "starting",
}  # fmt: skip


class Example(NamedTuple):
    """What to type, and the answer the page shows: `form` is json, ndjson, text or "" for none."""

    typed: str
    form: str
    shown: str


def examples(page: Path, language: str) -> list[Example]:
    """Each block of `language`, with the block after it if that is an answer."""
    found: list[Example] = []
    blocks = FENCE.findall(page.read_text())
    for place, (name, text) in enumerate(blocks):
        if name == language:
            after = blocks[place + 1] if place + 1 < len(blocks) else ("", "")
            form, shown = after if after[0] in ("json", "ndjson", "text") else ("", "")
            found.append(Example(text, form, shown))
    return found


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table of a section, without its head."""
    sections = re.split(r"^#+ ", page.read_text(), flags=re.M)
    section = next(text for text in sections if text.startswith(heading + "\n"))
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def first_cells(page: Path, heading: str) -> list[str]:
    """What stands in backticks in the first column; several may share a cell."""
    return [name for row in rows(page, heading) for name in re.findall(r"`([^`]+)`", row[0])]


def routes() -> list[str]:
    """Each as "GET /api/v1/nodes"; those that are in the API's description, so not the page at /."""
    known = [one for one in app.every_route() if isinstance(one, APIRoute)]
    return [f"{method} {one.path_format}" for one in known if one.include_in_schema for method in one.methods or ()]


def sockets() -> list[str]:
    """Those that answer over a websocket, which OpenAPI has no word for."""
    return [f"WEBSOCKET {one.path_format}" for one in app.every_route() if isinstance(one, APIWebSocketRoute)]


def missing(shown: Any, real: Any, where: str = "$", *, form_only: bool = False) -> list[str]:
    """Where a real answer is not what the page shows. The page may leave keys of an object out."""
    if isinstance(shown, dict) and isinstance(real, dict):
        found = [f"{where}.{key} is not in the answer" for key in shown if key not in real]
        for key in shown.keys() & real.keys():
            found += missing(shown[key], real[key], f"{where}.{key}", form_only=key in VARYING)
        return found
    if isinstance(shown, list) and isinstance(real, list):
        found = [] if len(shown) == len(real) else [f"{where} has {len(real)} items, not {len(shown)}"]
        for place, (one, other) in enumerate(zip(shown, real, strict=False)):
            found += missing(one, other, f"{where}[{place}]")
        return found
    if form_only:
        same = _form(shown) == _form(real)
        return [] if same else [f"{where} is {json.dumps(real)}, not of the form of {json.dumps(shown)}"]
    return [] if shown == real else [f"{where} is {json.dumps(real)}, not {json.dumps(shown)}"]


def _form(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


# --- what the code says ------------------------------------------------------------------------------------------

ANSWERING = ("api", "control", "core", "executors", "policies", "runtime", "spec", "store")  # their errors travel
ASKING = ("cli", "client", "sim", "executors/launcher.py")  # that one is called by the command line alone
NO_ERRORS = ("diagnosis.py",)  # its codes are findings
NEVER_TOLD = ("error", "unchanged")  # the root's own; a refusal that is answered as success
BY_CLASS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}


class Code(NamedTuple):
    name: str
    status: int | None  # None: decided elsewhere
    file: str


ENDPOINT = ("llmsched/gateway", "llmsched/data/parameters.py", "workloads/inference", "workloads/apps")


def endpoint_codes() -> set[str]:
    """Of every error that an endpoint answers: of the gateway, its proxies, and replicas."""
    found = set(refusals.OF_CONNECTIONS)
    for part in map(ROOT.joinpath, ENDPOINT):
        for file in [part] if part.is_file() else part.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                given = [each for each, _ in _codes_at(node)]
                if isinstance(node, ast.FunctionDef):  # what a code is where none is given
                    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                    given += [default for each, default in pairs if each.arg == "code" and default is not None]
                found |= {each.value for each in given if isinstance(each, ast.Constant) and each.value is not None}
    return found


def error_codes(parts: Iterable[str]) -> Iterator[Code]:
    """Of every error, problem and refusal that is made in these parts of the house."""
    house = ROOT / "llmsched"
    asking = {file for part in ASKING if part.endswith(".py") for file in [house / part]}
    files: list[Path] = []
    for part in parts:
        here = [house / part] if part.endswith(".py") else sorted((house / part).rglob("*.py"))
        files += [file for file in here if part.endswith(".py") or file not in asking]
    for file in [ROOT / "llmsched" / "errors.py", *files]:
        for node in ast.walk(ast.parse(file.read_text())) if file.name not in NO_ERRORS else ():
            for given, status in _codes_at(node):
                for part in ast.walk(given):
                    word = part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""
                    if re.fullmatch(r"[a-z_]+", word) and word not in NEVER_TOLD:
                        yield Code(word, status, str(file.relative_to(ROOT)))


def _codes_at(node: ast.AST) -> Iterator[tuple[ast.expr, int | None]]:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        given = {each.arg: each.value for each in node.keywords}
        status = getattr(BY_CLASS.get(name), "http_status", None)
        if isinstance(given.get("http_status"), ast.Constant):
            status = given["http_status"].value  # type: ignore[attr-defined]
        elif "http_status" in given:
            status = None
        if "code" in given:
            yield given["code"], status
        elif name == "Refusal":
            yield node.args[0], None
        elif name == "Problem" and len(node.args) > 3:
            yield node.args[3], 422
    elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("default_code", "code"):
        yield node.value, None
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
        yield node.value.elts[2], None  # (message, hint, code) of spec/validation.py
    elif isinstance(node, ast.FunctionDef):
        for argument, default in zip(reversed(node.args.args), reversed(node.args.defaults), strict=False):
            if argument.arg == "code":
                yield default, None


def literals(names: Iterable[str], place: int) -> set[str]:
    """The words that stand as argument number `place` where the core calls one of `names`."""
    found = set()
    for file in (ROOT / "llmsched" / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in names:
                given = node.args[place] if len(node.args) > place else None
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    found.add(given.value)
    return found
