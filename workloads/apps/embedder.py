"""Vectors of texts, made once for all who look for them later: a task for the night, when nobody else asks the model.

    kind: task
    schedule: {cron: "0 3 * * *"}
    calls: [minilm]
    task: {run: [python, -m, workloads.apps.embedder, /answers, /vectors, minilm]}

Of each file below the first folder one of the same name comes into the second, as JSON Lines: its passages in `text`, a
`vector` beside each, and all else that the row had. A `Retriever` of that folder takes them as they are. A file comes
whole or not at all, in the place of the one that was there. Rows that cannot be read are set aside and named; a file
that cannot be read keeps no other one from its vectors, and is an error at the end. It reports files, passages,
left_out (characters).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmsched.data.files import DataFile, find
from llmsched.data.reading import read
from llmsched.data.rows import BadRows, DataError
from llmsched.runtime import calls, progress
from workloads.apps.passages import left_out, passages

AT_ONCE = 64  # texts in one request for vectors


def embed(
    documents: Path, into: Path, model: str, column: str = "text", report: Callable[..., None] = progress.report
) -> None:
    """`column`: what is found by. Raises DataError for files of one name, and at the end for those that cannot be read,
    such as without the column; and as calls.embeddings."""
    into.mkdir(parents=True, exist_ok=True)
    done = dict.fromkeys(("files", "passages", "left_out"), 0)
    unknown: dict[Path, str] = {}
    found = find(documents, aside=unknown)
    wrong = [f"{path}: {why}" for path, why in unknown.items()]
    files = {file.path.name.partition(".")[0] + ".jsonl": file for file in found}
    if len(files) < len(found):
        raise DataError(f"{documents}: {len(found)} files would come to {len(files)} names, such as {min(files)}")
    for name, file in files.items():
        try:
            rows = [*_rows(file, column, done)]
        except DataError as error:
            wrong.append(str(error))
            continue
        by_length = sorted(rows, key=lambda row: len(row["text"]))  # beside a long text a short one costs as much
        for begin in range(0, len(rows), AT_ONCE):
            some = by_length[begin : begin + AT_ONCE]
            made = calls.embeddings(model, [row["text"] for row in some])
            for row, vector in zip(some, made, strict=True):
                row["vector"] = [round(number, 6) for number in vector]
        new = into / f".{name}.new"  # hidden: nobody reads it yet
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new.replace(into / name)
        done["files"] += 1
        done["passages"] += len(rows)
        report(**done)
    if wrong:
        raise DataError("; ".join(wrong))


def _rows(file: DataFile, column: str, done: dict[str, int]) -> Iterator[dict[str, Any]]:
    rows = read(file.path, str(file.path), BadRows(str(file.path), "skip"))
    for note in rows.notes:
        print(f"[embedder] {note}", flush=True)
    for row in rows:
        if column not in row:
            raise DataError(f"{file.path}: there is no column {column!r}; it has {', '.join(row)}")
        text = str(row[column])
        done["left_out"] += left_out(text)
        rest = {key: value for key, value in row.items() if key != column}
        yield from ({**rest, "text": part} for part in passages(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the vectors of a folder's texts.")
    parser.add_argument("documents", type=Path, help="a file, a folder or a pattern")
    parser.add_argument("into", type=Path, help="the folder of the same files with vectors")
    parser.add_argument("model", help="the endpoint that makes vectors (feature-extraction)")
    parser.add_argument("--column", default="text", help="what is found by")
    asked = parser.parse_args()
    embed(asked.documents, asked.into, asked.model, asked.column)
