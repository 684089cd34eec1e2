"""No module of the core needs, when it is imported, one that needs it. What annotations alone name is left out."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import llmsched.core

CORE = Path(llmsched.core.__file__).parent


def imported(file: Path, modules: dict[str, Path]) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            each = {f"{node.module}.{one.name}" for one in node.names}
            found |= (each & modules.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
    return found & modules.keys()


def test_the_modules_of_the_core_can_be_put_in_an_order() -> None:
    modules = {
        ".".join(["llmsched.core", *file.relative_to(CORE).with_suffix("").parts]): file
        for file in sorted(CORE.rglob("*.py"))
        if file.name != "__init__.py"
    }
    order = [*TopologicalSorter({name: imported(file, modules) for name, file in modules.items()}).static_order()]
    assert order.index("llmsched.core.status") < order.index("llmsched.core.lifecycle")
    assert order.index("llmsched.core.world") < order.index("llmsched.core.state")
