"""Answers as files: one for each part, there all at once or not at all, and a list of the rows that have no answer.

    part-000000.parquet ...      _row, the columns of the input, and those of the answer
    _bad_rows.jsonl              {"file", "row", "why"}; only where there are any. Of a batch that does not end there is
                                 one for each part that has some

The names begin with no underscore where there are answers, so the folder as it is can be read as a data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llmsched.data.look_batch import in_the_way
from llmsched.data.rows import Row
from llmsched.runtime.storage import LocalStorage, Storage, StorageError
from workloads.batch.json_text import json_text
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
        if wrong := in_the_way(self.uri, self._storage.list()):
            raise BadInput(f"{wrong}.")

    def write(self, number: int, rows: Sequence[Row]) -> str:
        """The answers of a part; those of the same part that were there are replaced. The types of its columns, for
        `finish`."""
        if not rows:
            return ""
        if self._form == "jsonl":
            self._storage.write(self._part(number), _jsonl(rows))
            return ""
        from workloads.batch import tables  # pyarrow, where there are tables

        data, types = tables.written(rows)
        self._storage.write(self._part(number), data)
        return types

    def name_bad(self, name: str, bad: Iterable[BadRow]) -> None:
        """The rows without an answer, where nothing ends after which they could be told together."""
        if named := [one._asdict() for one in bad]:
            self._storage.write(BAD_ROWS.replace(".", f"-{name}."), _jsonl(named))

    def _part(self, number: int) -> str:
        return f"part-{number:06d}.{self._form}"

    def finish(self, bad: Iterable[BadRow], types: Mapping[int, str]) -> None:
        """`types` by part, as `write` gave them: where they differ, parts are written again with those that fit all.
        Doing so again changes nothing."""
        if len({one for one in types.values() if one}) > 1:
            from workloads.batch import tables

            fitting = tables.fitting([types[number] for number in sorted(types) if types[number]])
            for number in sorted(types):
                if types[number] and types[number] != fitting.text:
                    self._storage.write(self._part(number), fitting.rewritten(self._storage.read(self._part(number))))
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
    return "".join(f"{json_text(row)}\n" for row in rows).encode()
