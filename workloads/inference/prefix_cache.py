"""Keys and values of prompts that were read, so that the next one with the same beginning need not read it again.

A radix tree: each edge holds the tokens that follow its parent's, and their columns. An `owner` (an adapter, or None)
has a tree of its own, as the same tokens have other keys and values there. What is kept is bounded in bytes: the ends
of the tree that nobody used for longest go first. The idea is RadixAttention's (Zheng et al., "SGLang: Efficient
Execution of Structured Language Model Programs", NeurIPS 2024). Columns are copied in and out: nothing here is in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]  # of each layer: keys, values; (1, heads, tokens, size)


class _Edge:
    __slots__ = ("tokens", "layers", "parent", "children")

    def __init__(self, tokens: tuple[int, ...], layers: Layers, parent: _Edge | None) -> None:
        self.tokens, self.layers, self.parent = tokens, layers, parent
        self.children: dict[int, _Edge] = {}  # by their first token


class PrefixCache:
    def __init__(self, most_bytes: int) -> None:
        self.bytes = 0
        self._most_bytes = most_bytes
        self._roots: dict[Hashable, _Edge] = {}
        # Whoever is used is put at the end, a child before its parent: so the first one never has a child.
        self._by_use: OrderedDict[_Edge, None] = OrderedDict()

    def find(self, owner: Hashable, tokens: Sequence[int]) -> tuple[int, list[Layers]]:
        """How many of the first tokens are known, and their columns, as pieces that follow each other. Views: copy."""
        edge, length, pieces = self._roots.get(owner), 0, list[Layers]()
        while edge is not None and length < len(tokens):
            child = edge.children.get(tokens[length])
            if child is None:
                break
            shared = _shared(child.tokens, tokens, length)
            pieces.append(child.layers if shared == len(child.tokens) else _columns(child.layers, 0, shared))
            edge, length = child, length + shared
            if shared < len(child.tokens):
                break
        self._use(edge)
        return length, pieces

    def keep(self, owner: Hashable, tokens: Sequence[int], layers: Layers) -> None:
        """The columns of these tokens; as many of the first ones as fit."""
        if not tokens:
            return
        a_token = sum(keys[:, :, :1].nbytes + values[:, :, :1].nbytes for keys, values in layers)
        tokens = tokens[: self._most_bytes // a_token]
        edge, length = self._roots.setdefault(owner, _Edge((), (), None)), 0
        while length < len(tokens) and (child := edge.children.get(tokens[length])) is not None:
            shared = _shared(child.tokens, tokens, length)
            length += shared
            is_whole = shared == len(child.tokens) or length == len(tokens)
            edge = child if is_whole else self._split(child, shared)
        if length < len(tokens):
            rest = _Edge(tuple(tokens[length:]), _copied(_columns(layers, length, len(tokens))), edge)
            edge.children[tokens[length]] = edge = rest
            self.bytes += _size(rest)
        self._use(edge)
        while self.bytes > self._most_bytes:
            self._drop(next(iter(self._by_use)))

    def forget(self, owner: Hashable) -> None:
        """All of an owner that is gone."""
        left = [self._roots.pop(owner)] if owner in self._roots else []
        while left:
            edge = left.pop()
            left += edge.children.values()
            if edge.parent is not None:
                self.bytes -= _size(edge)
                del self._by_use[edge]

    def _use(self, edge: _Edge | None) -> None:
        while edge is not None and edge.parent is not None:
            self._by_use[edge] = None
            self._by_use.move_to_end(edge)
            edge = edge.parent

    def _split(self, edge: _Edge, at: int) -> _Edge:
        """A new edge of its first `at` tokens, whose child it becomes. Both are copied, so that neither keeps the whole
        in memory."""
        assert edge.parent is not None
        first = _Edge(edge.tokens[:at], _copied(_columns(edge.layers, 0, at)), edge.parent)
        edge.parent.children[edge.tokens[0]] = first
        edge.layers = _copied(_columns(edge.layers, at, len(edge.tokens)))
        edge.tokens, edge.parent = edge.tokens[at:], first
        first.children[edge.tokens[0]] = edge
        return first

    def _drop(self, edge: _Edge) -> None:
        assert edge.parent is not None and not edge.children
        del self._by_use[edge], edge.parent.children[edge.tokens[0]]
        self.bytes -= _size(edge)


def _shared(known: tuple[int, ...], tokens: Sequence[int], begin: int) -> int:
    """How many of `known` are those of `tokens` from `begin` on."""
    count = min(len(known), len(tokens) - begin)
    return next((n for n in range(count) if known[n] != tokens[begin + n]), count)


def _columns(layers: Layers, begin: int, end: int) -> Layers:
    return [(keys[:, :, begin:end], values[:, :, begin:end]) for keys, values in layers]


def _copied(layers: Layers) -> Layers:
    whole = torch.contiguous_format
    return [(keys.clone(memory_format=whole), values.clone(memory_format=whole)) for keys, values in layers]


def _size(edge: _Edge) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in edge.layers)
