"""Which replica has seen which beginning of a prompt: a radix tree of texts, bounded in characters.

Each edge holds a piece of text and the names of those who saw it. Who saw a text saw its beginnings, so names thin out
on the way down. The ends of the tree that came up least recently are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection


class _Edge:
    __slots__ = ("text", "names", "parent", "children")

    def __init__(self, text: str, names: dict[str, None], parent: _Edge | None) -> None:
        self.text, self.names, self.parent = text, names, parent
        self.children: dict[str, _Edge] = {}  # by their first character


class TextTree:
    def __init__(self, most: int) -> None:
        """`most`: characters."""
        self.size = 0
        self._most = most
        self._root = _Edge("", {}, None)
        # Who comes up is put at the end, a child before its parent: so the first one never has a child.
        self._by_use: OrderedDict[_Edge, None] = OrderedDict()

    def seen(self, text: str) -> dict[str, int]:
        """{name: how much of the beginning of `text` it has seen, in characters}."""
        found: dict[str, int] = {}
        edge, length = self._root, 0
        while length < len(text) and (child := edge.children.get(text[length])) is not None:
            shared = _shared(child.text, text, length)
            edge, length = child, length + shared
            for name in child.names:
                found[name] = length
            if shared < len(child.text):
                break
        self._use(edge)
        return found

    def saw(self, name: str, text: str, others: Collection[str] = ()) -> None:
        """`others`: who is there beside it; an edge that remembers many that are gone forgets them."""
        text = text[: self._most]
        edge, length = self._root, 0
        while length < len(text) and (child := edge.children.get(text[length])) is not None:
            shared = _shared(child.text, text, length)
            length += shared
            edge = child if shared == len(child.text) else self._split(child, shared)
            if len(edge.names) > 2 * len(others) + 8:
                edge.names = {each: None for each in edge.names if each in others}
            edge.names[name] = None
        if length < len(text):
            rest = _Edge(text[length:], {name: None}, edge)
            edge.children[text[length]] = edge = rest
            self.size += len(rest.text)
        self._use(edge)
        while self.size > self._most:
            self._forget(next(iter(self._by_use)))

    def _use(self, edge: _Edge) -> None:
        while edge.parent is not None:
            self._by_use[edge] = None
            self._by_use.move_to_end(edge)
            edge = edge.parent

    def _split(self, edge: _Edge, at: int) -> _Edge:
        assert edge.parent is not None
        first = _Edge(edge.text[:at], dict(edge.names), edge.parent)
        edge.parent.children[edge.text[0]] = first
        edge.text, edge.parent = edge.text[at:], first
        first.children[edge.text[0]] = edge
        return first

    def _forget(self, edge: _Edge) -> None:
        assert edge.parent is not None and not edge.children
        del self._by_use[edge], edge.parent.children[edge.text[0]]
        self.size -= len(edge.text)


def _shared(known: str, text: str, begin: int) -> int:
    """How many characters of `known` are those of `text` from `begin` on."""
    if text.startswith(known, begin):
        return len(known)
    low, high = 0, min(len(known), len(text) - begin)  # that many are the same; that many may be
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(known[:middle], begin):
            low = middle
        else:
            high = middle - 1
    return low
