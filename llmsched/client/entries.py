"""Whether the app that a spec names is in its workdir, or in the package of the ready-made ones, read from the source:
nothing of it is run to find out.

Only what is certain is refused: a module that stands there, can be read, and binds its names where one can see it. The
same mistakes are found again where the app is made.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from llmsched.client.arguments import misfits

_DEPLOYS = ("run", "run_many")
_OWN = "workloads"  # where the ready-made apps are
_LOOKED_AT = 1_000  # modules of a workdir, for a name that is near
_BESIDE_US = Path(__file__).resolve().parents[2]


def mistakes(entry: str, what: str, folder: Path | None, args: Mapping[str, object] | None = None) -> list[str]:
    """What is wrong with "module:name" of a workdir (None: there is none), and with its arguments where these are
    given, in sentences; nothing where one cannot know."""
    module, _, name = entry.partition(":")
    found_at = _source(module, folder)
    if found_at is None:
        file = module.removesuffix(".py")
        if file != module and _source(file, folder) is not None:
            return [f'{what} {entry}: a module is named without ".py": write {file}:{name}.']
        return []
    source, place = found_at
    if source is None:
        return [f"{what} {entry}: llmsched has no module {module}."]
    try:
        tree = ast.parse(source.read_bytes(), str(place))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return [f"{what} {entry}: {place}{line} is no Python that can be read: {getattr(error, 'msg', error)}."]
    found = []
    names = set(_names(tree.body))
    if not names & {"*", "__getattr__", name} and not any(isinstance(one, ast.Global) for one in ast.walk(tree)):
        near = difflib.get_close_matches(name, sorted(names), 1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        found.append(f'{what} {entry}: {place} has nothing called "{name}".{hint}')
    if args is not None and list(_names(tree.body)).count(name) == 1:
        wrong = misfits(tree.body, name, args, is_map=what == "batch.map")
        found += [f"{what} {entry}: {each}" for each in wrong]
    found += [
        f"{what} {entry}: {place}:{line} deploys an application when it is imported. llmsched deploys what serve.app "
        'names: put that call under `if __name__ == "__main__":`.'
        for line in _deploys(tree.body)
    ]
    return found


def doubts(entry: str, what: str, folder: Path) -> list[str]:
    """A note where the workdir has no such module: it may be installed on the nodes, or misspelt."""
    module, _, name = entry.partition(":")
    if _source(module, folder) is not None:
        return []
    there = [".".join(file.relative_to(folder).with_suffix("").parts) for file in _modules(folder)]
    near = difflib.get_close_matches(module, there, 1)
    hint = f' Did you mean "{near[0]}:{name}"?' if near else ""
    return [f"{what} {entry}: the workdir has no module {module}; it has to be installed on the nodes.{hint}"]


def _modules(folder: Path) -> Iterator[Path]:
    for depth in ("*.py", "*/*.py"):
        yield from islice(folder.glob(depth), _LOOKED_AT)


def _source(module: str, folder: Path | None) -> tuple[Path | None, Path] | None:
    """The file of a module (None: our own package has none such), and how to name it; None: it is elsewhere."""
    parts = module.split(".")
    own = [_BESIDE_US] if parts[0] == _OWN else []
    for root in [*([folder] if folder is not None else []), *own]:
        base = root.joinpath(*parts)
        for one in (base.with_suffix(".py"), base / "__init__.py"):
            if one.is_file():
                return one, one.relative_to(root)
    return (None, Path()) if own else None


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Bound at the top of a module, in blocks too; "*" for more than can be seen."""
    for one in body:
        match one:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield one.name
            case ast.Import() | ast.ImportFrom():
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in one.names)
            case _:
                for inner in ast.walk(one):
                    if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                        yield inner.id
                    elif isinstance(inner, ast.stmt) and inner is not one:
                        yield from _names([inner])


def _deploys(body: Iterable[ast.stmt]) -> Iterator[int]:
    """The lines of `serve.run(...)` at the top of a module; not those under an `if`."""
    for one in body:
        if isinstance(one, ast.Expr | ast.Assign) and isinstance(one.value, ast.Call):
            match one.value.func:
                case ast.Attribute(value=ast.Name(id="serve"), attr=attr) if attr in _DEPLOYS:
                    yield one.lineno
