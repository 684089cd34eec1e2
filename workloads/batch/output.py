"""Answers as files: one for each part, there all at once or not at all, and a list of the rows that have no answer.

    part-000000.parquet ...      _row, the columns of the input, and those of the answer
    _bad_rows.jsonl              {"file", "row", "why"}; only where there are any. Of a batch that does not end there is
                                 one for each part that has some

The names begin with no underscore where there are answers, so the folder as it is can be read as a data set.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from llmsched.data.rows import Row
from llmsched.runtime.storage import LocalStorage, Storage, StorageError
from workloads.batch.ledger import BadRow
from workloads.sources import BadInput

BAD_ROWS = "_bad_rows.jsonl"
_PROBE = ".begins"
ROW = "_row"  # where a row stands in the input: "reviews.jsonl#12"


class Output:
    """`uri` is a folder or an S3 prefix, `form` parquet or jsonl."""

    def __init__(self, uri: str, form: str) -> None:
        self.uri, self._form = uri, form
        self._storage = Storage.at(uri)

    def begin(self) -> None:
        """Raises BadInput where something lies already, which would be mixed with what this run writes, and where
        nothing can be written."""
        try:
            self._storage.write(_PROBE, b"")
            self._storage.delete(_PROBE)
        except (OSError, StorageError) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise BadInput(f"batch.output {self.uri} cannot be written by whom work runs as: {why}") from error
        there = [name for name in self._storage.list() if not name.startswith(".")]
        if there:
            more = f" and {len(there) - 1:,} more files" if len(there) > 1 else ""
            raise BadInput(
                f"batch.output {self.uri} is not empty: it has {there[0]}{more}. Name a folder of its own for each "
                "run, or leave output out: then the answers are the result of the run."
            )

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """The answers of a part; those of the same part that were there are replaced."""
        data = _parquet(rows) if self._form == "parquet" else _jsonl(rows)
        if rows:
            self._storage.write(f"part-{number:06d}.{self._form}", data)

    def name_bad(self, name: str, bad: Iterable[BadRow]) -> None:
        """The rows without an answer, where nothing ends after which they could be told together."""
        if named := [one._asdict() for one in bad]:
            self._storage.write(BAD_ROWS.replace(".", f"-{name}."), _jsonl(named))

    def finish(self, bad: Iterable[BadRow]) -> None:
        named = [one._asdict() for one in bad]
        if named:
            self._storage.write(BAD_ROWS, _jsonl(named))
        if isinstance(self._storage, LocalStorage):
            self._storage.root.mkdir(parents=True, exist_ok=True)


def joined(place: str, row: Row, answer: Row, keep: Sequence[str] | None) -> Row:
    """A row of the output. A column of the input that is named like one of ours is input_NAME there."""
    given = row if keep is None else {name: row.get(name) for name in keep}
    ours = {ROW: place, **answer}
    return {ROW: place, **{f"input_{name}" if name in ours else name: value for name, value in given.items()}, **answer}


def _jsonl(rows: Iterable[Row]) -> bytes:
    return "".join(f"{_json(row)}\n" for row in rows).encode()


def _json(value: Any) -> str:
    """Arrays of numpy and the like as lists; what JSON has no word for as text (a date, bytes), or null (NaN)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_listed)
    except ValueError:  # a number that is none: strict readers would stop at its word
        return json.dumps(_finite(json.loads(json.dumps(value, default=_listed))), ensure_ascii=False)


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({name: _column([row.get(name) for row in rows]) for name in names}), sink)
    return sink.getvalue()


def _column(values: list[Any]) -> Any:
    """Values of one type as that. Of several, or of one that a table has not, as JSON, so that nothing is lost."""
    import pyarrow

    for read in (values, [one.tolist() if hasattr(one, "tolist") else one for one in values]):  # tensors as lists
        try:
            column = pyarrow.array(read)
            if not pyarrow.types.is_null(column.type) and column.type != pyarrow.struct([]):
                return column
        except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            pass
    texts = [value if value is None or isinstance(value, str) else _json(value) for value in values]
    return pyarrow.array(texts, pyarrow.string())
