"""Whether `args` of a spec fit the app or function that it names, read from the source of its module: nothing of it is
run to find out.

The rules are those of where it is made (`workloads/inference/app.py`, Serve's own for a builder). Of what is bound more
than once, decorated by others than Serve, or made by a metaclass nothing is said. Start at `misfits`.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
_WEB = {"FastAPI": "fastapi", "Starlette": "starlette"}


class _Takes(NamedTuple):
    """Arguments by name; `needed` have no default. `any_name`: it takes others, too."""

    names: dict[str, None]
    needed: list[str]
    any_name: bool


def misfits(body: Collection[ast.stmt], name: str, args: Mapping[str, object], *, is_map: bool) -> list[str]:
    """What is wrong with `args` for `name`, which the module `body` binds once, in sentences without their place."""
    found = _bound(body, name)
    match found:
        case ast.ClassDef():
            takes = _of_class(found)
            return _unfit(name, args, takes) if takes is not None else []
        case ast.FunctionDef() | ast.AsyncFunctionDef() if is_map and not found.decorator_list:
            return _unfit(name, args, _takes(found))
        case ast.FunctionDef() | ast.AsyncFunctionDef() if not is_map:
            return _of_function(body, found, args)
        case ast.Call() if args and not is_map:
            return _of_value(body, name, found)
    return []


def _bound(body: Iterable[ast.stmt], name: str) -> ast.stmt | ast.expr | None:
    """The definition, or the value of the assignment, of a name that stands at the top of a module; None: of none."""
    for one in body:
        if isinstance(one, ast.ClassDef | Function) and one.name == name:
            return one
        if isinstance(one, ast.Assign) and [getattr(each, "id", None) for each in one.targets] == [name]:
            return one.value
    return None


def _of_class(one: ast.ClassDef) -> _Takes | None:
    """None: one cannot know."""
    if one.keywords or not all(_is_of_serve(each) for each in one.decorator_list):
        return None
    methods = [each for each in one.body if isinstance(each, Function) and each.name in ("__init__", "__new__")]
    if not methods:
        return None if one.bases or not _is_plain(one.body) else _Takes({}, [], any_name=False)
    if len(methods) > 1 or methods[0].name != "__init__" or methods[0].decorator_list:
        return None
    return _takes(methods[0])


def _is_plain(body: Iterable[ast.stmt]) -> bool:
    """A class in which nothing but these stands may have no other __init__."""
    return all(isinstance(each, Function | ast.Expr | ast.Pass | ast.AnnAssign) for each in body)


def _takes(one: Function) -> _Takes:
    """What a call may give by name, after the first argument: an instance, or rows."""
    given, plain = one.args, [*one.args.posonlyargs, *one.args.args]
    without = plain[: len(plain) - len(given.defaults)]
    by_name = [each.arg for each in plain[1:] if each not in given.posonlyargs]
    needed = [each.arg for each in without[1:] if each not in given.posonlyargs]
    needed += [each.arg for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is None]
    names = dict.fromkeys([*by_name, *(each.arg for each in given.kwonlyargs)])
    return _Takes(names, needed, given.kwarg is not None or (not plain and given.vararg is None))


def _unfit(name: str, args: Mapping[str, object], takes: _Takes) -> list[str]:
    wrong = []
    for strange in sorted({*args} - {*takes.names}) if not takes.any_name else ():
        near = difflib.get_close_matches(strange, sorted(takes.names), 1)
        hint = f' Did you mean "{near[0]}"?' if near else f" It takes {', '.join(sorted(takes.names)) or 'none'}."
        wrong.append(f'"args" has "{strange}", which {name} does not take.{hint}')
    if missing := [each for each in takes.needed if each not in args]:
        named = ", ".join(f'"{each}"' for each in missing)
        wrong.append(f'{name} needs {named}: write {"it" if len(missing) == 1 else "them"} into "args".')
    return wrong


def _of_function(body: Iterable[ast.stmt], one: Function, args: Mapping[str, object]) -> list[str]:
    """A deployment, or a builder of an application: `def build(args)`."""
    if one.decorator_list:
        is_deployment = len(one.decorator_list) == 1 and _is_deployment(one.decorator_list[0])
        return [f'{one.name} is a function, which takes no "args".'] if is_deployment and args else []
    given = one.args
    count = len([*given.posonlyargs, *given.args, *given.kwonlyargs]) + bool(given.vararg) + bool(given.kwarg)
    if count != 1:
        return [f'{one.name} takes {count or "no"} arguments; a builder of an application takes one, which is "args".']
    hint = next((each.annotation for each in [*given.posonlyargs, *given.args]), None)
    model = _bound(body, hint.id) if isinstance(hint, ast.Name) else None
    needed = _fields_needed(model) if isinstance(model, ast.ClassDef) else []
    missing = [each for each in needed if each not in args]
    return [f'{one.name} needs "{each}", by its {model.name}: write it into "args".' for each in missing]  # type: ignore[union-attr]


def _fields_needed(model: ast.ClassDef) -> list[str]:
    """Of a plain model of pydantic; [] where aliases or a configuration may make them others."""
    bases = [ast.unparse(each) for each in model.bases]
    plain = all(isinstance(each, ast.AnnAssign | ast.Expr | ast.Pass) for each in model.body)
    if bases not in (["BaseModel"], ["pydantic.BaseModel"]) or not plain or model.keywords or model.decorator_list:
        return []
    fields = [each for each in model.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    hints = {each.target.id: ast.unparse(each.annotation) for each in fields if each.value is None}  # type: ignore[union-attr]
    return [name for name, hint in hints.items() if not any(word in hint for word in ("Annotated", "ClassVar"))]


def _of_value(body: Iterable[ast.stmt], name: str, value: ast.Call) -> list[str]:
    """`app = Desk.bind()` and `app = FastAPI()`, of what stands in the same module."""
    called = value.func
    if isinstance(called, ast.Attribute) and called.attr == "bind":
        root: ast.expr = called.value
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        made = _bound(body, root.id) if isinstance(root, ast.Name) else None
        if isinstance(made, ast.ClassDef | Function) and any(_is_deployment(each) for each in made.decorator_list):
            return [f'{name} is bound already, so "args" has no effect. Name a builder, or {made.name} itself.']
    if isinstance(called, ast.Name) and called.id in _WEB:
        imports = [each for each in body if isinstance(each, ast.ImportFrom) and each.module is not None]
        if any(each.module.split(".")[0] == _WEB[called.id] for each in imports if _imports(each, called.id)):  # type: ignore[union-attr]
            return [f'{name} is a web application, which takes no "args".']
    return []


def _imports(one: ast.ImportFrom, name: str) -> bool:
    return any((each.asname or each.name) == name for each in one.names)


def _is_of_serve(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return _is_deployment(decorator) or ast.unparse(called) == "serve.ingress"


def _is_deployment(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called) == "serve.deployment"
