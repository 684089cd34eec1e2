"""The keys and values of one layer, with room for tokens to come: a step writes one column and copies nothing.

transformers' own layer makes all of them anew for each token, which at 64 rows is most of what a step moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 64  # columns, or an eighth of what is there where that is more


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """`keys` and `values` are (rows, heads, columns, size), views of tensors with more columns."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def joined(cls, layers: Sequence[DynamicLayer], columns: int) -> RoomyLayer:
        """All their rows one below the other, padded on the left to `columns`."""
        one = cls()
        one.lazy_initialization(layers[0].keys, layers[0].values)
        rows = sum(len(layer.keys) for layer in layers)
        one._make_room(rows, columns + _room(columns))
        begin = 0
        for layer in layers:
            end, width = begin + len(layer.keys), layer.keys.shape[-2]
            one._all_keys[begin:end, :, columns - width : columns] = layer.keys
            one._all_values[begin:end, :, columns - width : columns] = layer.values
            begin = end
        one._show(columns)
        return one

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._all_keys, self._all_values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True
        self._show(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        if end > self._all_keys.shape[-2]:
            keys, values = self.keys, self.values
            self._make_room(len(key_states), end + _room(end))
            self._all_keys[:, :, :begin], self._all_values[:, :, :begin] = keys, values
        self._all_keys[:, :, begin:end], self._all_values[:, :, begin:end] = key_states, value_states
        self._show(end)
        return self.keys, self.values

    def drop_last(self, columns: int) -> None:
        self._show(self.keys.shape[-2] - columns)

    def keep(self, rows: torch.Tensor, unused: int) -> None:
        """Go on with these rows alone, and without the first `unused` columns."""
        columns = self.keys.shape[-2] - unused
        keys, values = self.keys, self.values
        self._make_room(len(rows), columns + _room(columns))
        torch.index_select(keys[:, :, unused:], 0, rows, out=self._all_keys[:, :, :columns])
        torch.index_select(values[:, :, unused:], 0, rows, out=self._all_values[:, :, :columns])
        self._show(columns)

    def _make_room(self, rows: int, columns: int) -> None:
        """Zeros, as what a mask hides must still be a number."""
        (_, heads, _, size), (_, _, _, value_size) = self._all_keys.shape, self._all_values.shape
        self._all_keys = self._all_keys.new_zeros(rows, heads, columns, size)
        self._all_values = self._all_values.new_zeros(rows, heads, columns, value_size)

    def _show(self, columns: int) -> None:
        self.keys, self.values = self._all_keys[:, :, :columns], self._all_values[:, :, :columns]


def _room(columns: int) -> int:
    return max(ROOM, columns // 8)
