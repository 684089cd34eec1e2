"""Whether the app that a spec names is in its workdir, or in the package of the ready-made ones, read from the source:
nothing of it is run to find out.

Only what is certain is refused: a module that stands there, can be read, and binds its names where one can see it. The
same mistakes are found again where the app is made.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

_DEPLOYS = ("run", "run_many")
_OWN = "workloads"  # where the ready-made apps are
_BESIDE_US = Path(__file__).resolve().parents[2]


def mistakes(entry: str, what: str, folder: Path | None, args: Collection[str] = ()) -> list[str]:
    """What is wrong with "module:name" of a workdir (None: there is none), and with the names of its arguments, in
    sentences; nothing where one cannot know."""
    module, _, name = entry.partition(":")
    found_at = _source(module, folder)
    if found_at is None:
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
    taken = _taken(tree.body, name, is_map=what == "batch.map")
    for strange in sorted({*args} - taken) if taken is not None else ():
        near = difflib.get_close_matches(strange, sorted(taken or ()), 1)
        hint = f' Did you mean "{near[0]}"?' if near else f" It takes {', '.join(sorted(taken or ())) or 'none'}."
        found.append(f'{what} {entry}: "args" has "{strange}", which {name} does not take.{hint}')
    found += [
        f"{what} {entry}: {place}:{line} deploys an application when it is imported. llmsched deploys what serve.app "
        'names: put that call under `if __name__ == "__main__":`.'
        for line in _deploys(tree.body)
    ]
    return found


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


def _taken(body: Iterable[ast.stmt], name: str, is_map: bool) -> set[str] | None:
    """The arguments by name that a class, or of `map` a function after its rows, takes; None: one cannot know."""
    found = [one for one in body if isinstance(one, _DEFINED) and one.name == name]
    if len(found) != 1:
        return None
    (one,) = found
    taker: ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(one, ast.ClassDef):
        inits = [each for each in one.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if len(inits) != 1 or one.keywords:
            return None
        taker = inits[0]
    elif is_map:
        taker = one
    else:
        return None
    if taker.args.kwarg or taker.decorator_list:
        return None
    return {each.arg for each in [*taker.args.args[1:], *taker.args.kwonlyargs]}


_DEFINED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


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
