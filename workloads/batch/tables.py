"""The answers of a part as a Parquet table, and one type for each column in all parts.

A part is written before others are known: a column may hold whole numbers there and texts elsewhere, or nothing at all.
Readers take the columns of the first file for those of all, and stop or drop at what differs, so at the end of a run
parts that differ are written again.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from llmsched.data.rows import Row
from workloads.batch.json_text import json_text


def written(rows: Sequence[Row]) -> tuple[bytes, str]:
    """The file, and its columns' types as text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    table = pyarrow.table({name: _column(values) for name, values in columns.items()})
    empty = {name for name, values in columns.items() if all(value is None for value in values)}
    fields = [pyarrow.field(one.name, pyarrow.null()) if one.name in empty else one for one in table.schema]
    return _file(table), _text(pyarrow.schema(fields))


class Fitting:
    """Types that the columns of all parts can have."""

    def __init__(self, schema: pyarrow.Schema) -> None:
        self.text = _text(schema)
        self._schema = schema

    def rewritten(self, data: bytes) -> bytes:
        """A part with all columns, each of its type."""
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        has = set(table.column_names)
        columns = [
            _fitted(table[field.name], field.type) if field.name in has else pyarrow.nulls(len(table), field.type)
            for field in self._schema
        ]
        return _file(pyarrow.table(columns, schema=self._schema))


def fitting(types: Sequence[str]) -> Fitting:
    """`types` of each part, as `written` gave them. Numbers become the wider of their kinds; what has nothing in common
    becomes text, in JSON."""
    schemas = [pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(one))) for one in types]
    found: dict[str, pyarrow.DataType] = {}
    for schema in schemas:
        for field in schema:
            found[field.name] = _common(found.get(field.name, pyarrow.null()), field.type)
    is_null = pyarrow.types.is_null
    return Fitting(
        pyarrow.schema([(name, pyarrow.string() if is_null(kind) else kind) for name, kind in found.items()])
    )


def _common(one: pyarrow.DataType, other: pyarrow.DataType) -> pyarrow.DataType:
    if one == other:
        return one
    try:
        (field,) = pyarrow.unify_schemas(
            [pyarrow.schema([("it", one)]), pyarrow.schema([("it", other)])], promote_options="permissive"
        )
    except pyarrow.ArrowException:
        return pyarrow.string()
    return field.type


def _fitted(column: Any, kind: pyarrow.DataType) -> Any:
    if column.type == kind:
        return column
    if pyarrow.types.is_string(kind) and column.null_count < len(column):
        return pyarrow.array(_texts(column.to_pylist()), kind)
    try:
        return column.cast(kind, safe=False)  # the wider of two kinds of numbers
    except pyarrow.ArrowException:  # of nested ones there is no cast
        return pyarrow.array(column.to_pylist(), kind)


def _column(values: list[Any]) -> Any:
    """Values of one type as that. Of several, or of one that a table has not, as JSON, so that nothing is lost."""
    for read in (values, [one.tolist() if hasattr(one, "tolist") else one for one in values]):  # tensors as lists
        try:
            column = pyarrow.array(read)
            if not pyarrow.types.is_null(column.type) and column.type != pyarrow.struct([]):
                return column
        except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            pass
    return pyarrow.array(_texts(values), pyarrow.string())


def _texts(values: list[Any]) -> list[str | None]:
    return [value if value is None or isinstance(value, str) else json_text(value) for value in values]


def _file(table: pyarrow.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _text(schema: pyarrow.Schema) -> str:
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()
