"""A data set that grows: what has come to it since the last look.

Of a file whose lines are its rows (JSON Lines, text) every new line counts once its end is there, and a last one that
is whole without it once it rests. Any other file counts whole, once two looks saw it alike, since nobody can tell a
file that is still being written. What has been taken stays taken: a file that becomes shorter, or another one under the
same name, is refused. A file that a pattern takes and whose kind nobody can tell is told of once, as one without rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llmsched.data import tables
from llmsched.data.files import DataFile, find
from llmsched.data.media import folder_of
from llmsched.data.parts import File, marks_of, rows_of
from llmsched.data.rows import Bad, Changed, DataError, NothingThere

STRETCH = 32 << 20  # bytes of lines that are one file to who reads them: also the longest line


class Growth:
    """Looks at `place`, which messages call `path`. `known` are the files that were taken before, in their order."""

    def __init__(
        self, place: Path, path: str, known: Iterable[File], encoding: str | None = None, split: str | None = None
    ) -> None:
        self._place, self._path, self._encoding, self._split = place, path, encoding, split
        self._taken: dict[str, tuple[int, int, str]] = {}  # bytes, lines and marks, by name
        self._compared: dict[str, int] = {}  # the time of change at which the marks were last those that were taken
        self._seen: dict[str, tuple[int, int, float]] = {}  # size and time of what waits, and the look before its first
        self._looked_at: float | None = None
        self._unknown: dict[Path, str] = {}  # files of which nobody can tell the kind, and why not
        for file in known:
            self._take(file)

    def look(self, now: float) -> list[File]:
        """What is new at `now` (Unix time). Raises DataError and OSError, of one file: where others have what is new,
        these come first, and the next look raises."""
        before, self._looked_at = self._looked_at if self._looked_at is not None else now, now
        self._unknown = {}
        try:
            there = find(self._place, self._split, self._unknown)
        except NothingThere:
            return []
        found: list[File] = []
        wrong: list[DataError | OSError] = []
        for file in sorted([*there, *(DataFile(path, "", None) for path in self._unknown)]):
            try:
                found += self._new_of(file, before)
            except FileNotFoundError:  # gone since
                continue
            except (DataError, OSError) as error:  # what was found of others counts as taken from now on
                wrong.append(error)
        if wrong and not found:
            raise wrong[0]
        return found

    def _new_of(self, file: DataFile, before: float) -> list[File]:
        name = str(file.path.relative_to(folder_of(self._place)))
        about = file.path.stat()
        size, lines, marks = self._taken.get(name, (0, 0, ""))
        if file.path in self._unknown and name in self._taken:
            return []  # it was told of
        by_lines = tables.has_lines(file) and not _is_wide(self._encoding)
        if about.st_size < size or (about.st_size != size and size and not by_lines):
            hint = "new lines go to its end" if by_lines else "only lines of .jsonl and .txt can be added to a file"
            raise Changed(
                f"data set {self._path}: {name} has changed since its rows were read (it had {size:,} bytes, and has "
                f"{about.st_size:,}); {hint}, anything else to a new file"
            )
        if marks and self._compared.get(name) != about.st_mtime_ns:
            if marks_of(file.path, size) != marks:
                raise Changed(
                    f"data set {self._path}: {name} is another file than when its rows were read: what it had then is "
                    "not in it any more; put new rows into a file of a new name"
                )
            self._compared[name] = about.st_mtime_ns
        if about.st_size == size:
            return []
        *seen, since = self._seen.get(name, (-1, -1, before))
        rests = seen == [about.st_size, about.st_mtime_ns]
        self._seen[name] = (about.st_size, about.st_mtime_ns, since)
        found = self._stretches(file, name, size, lines, since, rests) if by_lines else []
        if not by_lines and rests:
            found = [self._whole(file, name, about.st_size, since)]
        for one in found:
            self._take(one)
        if found and found[-1].size == about.st_size:
            del self._seen[name]
        elif found:
            self._seen[name] = (about.st_size, about.st_mtime_ns, before)
        return [one for one in found if one.rows or one.why]

    def _take(self, file: File) -> None:
        lines = 0 if file.lines is None else file.lines + file.new_lines
        self._taken[file.name] = (file.size, lines, file.marks)

    def _whole(self, file: DataFile, name: str, size: int, since: float) -> File:
        if why := self._unknown.get(file.path):
            return File(name, 0, size, since=since, why=f"{name}: {why}")
        marks = marks_of(file.path, size)
        try:
            return File(name, rows_of(file, self._encoding), size, since=since, marks=marks)
        except DataError as error:
            return File(name, 0, size, since=since, why=str(error), marks=marks)

    def _stretches(self, file: DataFile, name: str, start: int, lines: int, since: float, rests: bool) -> list[File]:
        """Whole lines; and the last one without an end, where nobody has gone on with it since the last look and it can
        be read: who writes through a buffer leaves half a line for as long as the buffer takes to fill."""
        found: list[File] = []
        with file.path.open("rb") as stream:
            stream.seek(start)
            while some := stream.read(STRETCH):
                is_last = len(some) < STRETCH
                end, encoding = some.rfind(b"\n") + 1, self._encoding or tables.encoding_of(file)
                if is_last and rests and _can_be_read(file, start + end, start + len(some), encoding):
                    end = len(some)
                if not end and not is_last:
                    longest = f"{STRETCH >> 20} MiB"
                    raise DataError(f"data set {self._path}: {name}: line {lines + 1:,} is longer than {longest}")
                if not end:
                    break
                count = some[:end].count(b"\n")  # what comes after one without an end is still of its line
                rows = sum(1 for _ in tables.between(file, start, start + end, lines, encoding))
                marks = marks_of(file.path, start + end)
                found.append(File(name, rows, start + end, lines, start, since, new_lines=count, marks=marks))
                start, lines = start + end, lines + count
                stream.seek(start)
        return found


def _can_be_read(file: DataFile, start: int, end: int, encoding: str) -> bool:
    return not any(isinstance(row, Bad) for _, row in tables.between(file, start, end, 0, encoding))


def _is_wide(encoding: str | None) -> bool:
    return (encoding or "").replace("_", "-").lower().startswith(("utf-16", "utf-32"))
