"""One data file -> (number, row) pairs, or Bad in a row's place. pyarrow reads tables, and undoes any compression.

JSON Lines go through Python's json, a line at a time: a table has one type a column, which JSON as people write it does
not (a content that is a text here and a list there), and pyarrow would fill every object with the keys of all others.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from llmsched.data.files import SPLITS, DataFile, opened
from llmsched.data.rows import Bad, Changed, DataError

Numbered = tuple[int, Any]  # from 1; a row as it stands there (any JSON value), or Bad
_SAMPLE = 1 << 20
_FEW = 0.05  # of the lines: so many may be broken, and no sign of another encoding
_BLOCK = 64 << 20  # bytes of a table at once: also the longest row
_WRAPPERS = ("data", "rows", "examples", "instances", "train")  # keys of a file that is one object around its rows
_WESTERN = set("àâäáãåæçèéêëìíîïñòóôöõøœßùúûüýÿÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜÝŸ‘’“”„–—…€£§°«»¿¡ºª·´\xa0•©®™ðþÐÞšžŠŽ")


def read(file: DataFile, encoding: str, class_names: dict[str, list[str]] | None = None) -> Iterator[Numbered]:
    """Every row of `file` in order. `encoding` is of texts; `class_names` is filled with the names of labels that the
    file keeps itself. Raises DataError for what no single row is to blame for."""
    with _named(file):
        if file.kind in ("parquet", "arrow"):
            yield from _columns(file, {} if class_names is None else class_names)
            return
        with opened(file) as stream:
            yield from _READERS[file.kind](file, stream, encoding)


def has_lines(file: DataFile) -> bool:
    """Whether each line of it is a row by itself, so that lines may be added."""
    return file.compression is None and (
        file.kind == "txt" or (file.kind == "json" and file.path.suffix.lower() != ".json")
    )


def between(file: DataFile, start: int, end: int, lines: int, encoding: str) -> Iterator[Numbered]:
    """The rows between two bytes of a file that has lines, of which `lines` come before. Raises DataError."""
    with _named(file), file.path.open("rb") as stream:
        stream.seek(start)
        data = stream.read(end - start)
    if len(data) < end - start:
        raise Changed(f"{file.name} has been cut: it had {end:,} bytes, and has {start + len(data):,}")
    some = io.BytesIO(data)
    rows = _txt(file, some, encoding) if file.kind == "txt" else _json_lines([], _lines(some, encoding))
    for number, row in rows:
        yield lines + number, row


def tells_its_rows(file: DataFile) -> bool:
    """Whether it says how many it has, and need not be read for that."""
    return file.kind == "parquet" and file.compression is None


def rows_of_parquet(file: DataFile) -> int:
    """As its footer says. Raises DataError."""
    import pyarrow.parquet

    with _named(file), pyarrow.parquet.ParquetFile(str(file.path)) as reader:
        return int(reader.metadata.num_rows)


def encoding_of(file: DataFile) -> str:
    """What the texts of a file are in: what its first bytes say; else UTF-8, also with some broken lines; else Western
    European, when it looks so. Raises DataError when it looks like something else."""
    if file.kind in ("parquet", "arrow"):
        return "utf-8"
    with _named(file), opened(file) as stream:
        return _encoding_of(file, stream)


@contextmanager
def _named(file: DataFile) -> Iterator[None]:
    """The errors of the libraries below, as ones that name the file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, LookupError) as error:  # pyarrow's are among them
        raise DataError(f"{file.name} cannot be read: {(str(error).splitlines() or [''])[0]}") from error


def _encoding_of(file: DataFile, stream: BinaryIO) -> str:
    sample = stream.peek(_SAMPLE)[:_SAMPLE]  # type: ignore[attr-defined]
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32")):
        if sample.startswith(mark):
            return name
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        sample.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError as error:
        if error.start >= len(sample) - 3:
            return "utf-8"  # a character that the sample cuts
    utf8, other, plain = _counts_of(sample) if file.kind in ("json", "txt") else (0, 1, 0)
    if utf8 >= other:  # hardly another encoding looks like it: the others are broken, and told one by one
        return "utf-8"
    text = sample.decode("cp1252", errors="replace")
    beyond = [letter for letter in text if ord(letter) > 127]
    letters = sum(letter.isalpha() for letter in text)
    if all(letter in _WESTERN for letter in beyond) and len(beyond) <= 0.3 * max(1, letters):
        return "cp1252"
    if other <= _FEW * plain:
        return "utf-8"
    raise DataError(f"{file.name} is not UTF-8; say what it is with encoding: (cp1251, gb18030, shift_jis ...)")


def _counts_of(sample: bytes) -> tuple[int, int, int]:
    """How many of its lines are UTF-8 beyond ASCII, neither, and ASCII."""
    utf8 = other = plain = 0
    lines = sample.split(b"\n")
    for line in lines[:-1] if len(sample) == _SAMPLE else lines:
        if line.isascii():
            plain += 1
            continue
        try:
            line.decode("utf-8")
            utf8 += 1
        except UnicodeDecodeError:
            other += 1
    return utf8, other, plain


def _lines(stream: BinaryIO, encoding: str) -> Iterator[str | Bad]:
    """Lines end at a newline and nowhere else. Bad: one that is not in the encoding."""
    if encoding.replace("_", "-").lower().startswith(("utf-16", "utf-32")):
        yield from stream.read().decode(encoding).replace("\r\n", "\n").split("\n")
        return
    for number, line in enumerate(stream):
        plain = line.rstrip(b"\n").removesuffix(b"\r")
        try:
            yield plain.decode(encoding if number == 0 or encoding != "utf-8-sig" else "utf-8")
        except UnicodeDecodeError as error:
            yield Bad(f"is not {encoding}: {error.reason} at byte {error.start}")


def _txt(file: DataFile, stream: BinaryIO, encoding: str) -> Iterator[Numbered]:
    for number, line in enumerate(_lines(stream, encoding), 1):
        if isinstance(line, Bad) or line.strip():
            yield number, line if isinstance(line, Bad) else {"text": line}


def _json(file: DataFile, stream: BinaryIO, encoding: str) -> Iterator[Numbered]:
    """A list of objects, JSON Lines, or one object around a list of them."""
    lines = _lines(stream, encoding)
    head: list[str | Bad] = []
    for line in lines:
        head.append(line)
        if isinstance(line, Bad) or line.strip():
            break
    first = head[-1] if head else ""
    if isinstance(first, Bad) or _is_json(first):
        rest = list(_take(lines, 2))
        if (
            not any(isinstance(each, Bad) or each.strip() for each in rest)
            and not isinstance(first, Bad)
            and first.strip()
        ):
            yield from _whole(file, _parse(first))
            return
        yield from _json_lines([*head, *rest], lines)
        return
    if file.name.lower().endswith((".json", ".json.gz", ".json.zst")) or first.strip() in ("[", "{"):
        try:
            whole = _parse("\n".join(_only_text(each) for each in (*head, *lines)))
        except ValueError as error:
            raise DataError(f"{file.name} is not JSON ({error})") from error
        yield from _whole(file, whole)
        return
    yield from _json_lines(head, lines)


def _take(lines: Iterator[Any], most: int) -> Iterator[Any]:
    for _ in range(most):
        if (line := next(lines, None)) is None:
            return
        yield line


def _only_text(line: str | Bad) -> str:
    if isinstance(line, Bad):
        raise ValueError(f"a line {line.why}")
    return line


def _json_lines(head: list[str | Bad], lines: Iterator[str | Bad]) -> Iterator[Numbered]:
    number = 0
    for source in (head, lines):
        for line in source:
            number += 1
            if isinstance(line, Bad):
                yield number, line
            elif line.strip():
                try:
                    yield number, _parse(line)
                except ValueError as error:
                    yield number, Bad(f"is not JSON ({error})")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _whole(file: DataFile, value: Any) -> Iterator[Numbered]:
    """Raises DataError for what is no rows, or several sets of them."""
    if isinstance(value, dict):
        sets = [key for key in value if key.lower() in (*_WRAPPERS, *SPLITS) and _is_rows(value[key])]
        if len(sets) > 1:  # one would be taken, and the others lost
            there = ", ".join(map(repr, sets))
            raise DataError(f"{file.name} holds several sets of rows, {there}: write each to a file of its own")
    if isinstance(value, dict) and len(value) <= 2:
        for key in _WRAPPERS:
            if _is_rows(value.get(key)):
                value = value[key]
                break
    if isinstance(value, dict) and value and all(isinstance(each, list) for each in value.values()):
        lengths = {len(each) for each in value.values()}
        if len(lengths) == 1 and not any(isinstance(item, dict) for each in value.values() for item in each):
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]  # by columns
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{file.name} is not a list of objects")
    yield from enumerate(value, 1)


def _parse(text: str) -> Any:
    """NaN and the infinities, which JSON does not have, are nothing. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _is_json(line: str) -> bool:
    try:
        _parse(line)
        return True
    except ValueError:
        return False


def _csv(file: DataFile, stream: BinaryIO, encoding: str) -> Iterator[Numbered]:
    first = _first_line(stream, encoding)
    outside = re.sub(r'"[^"]*"', "", first)
    delimiter = max(",;\t|", key=outside.count) if "," not in outside else ","
    yield from _table(file, stream, encoding, delimiter, '"')


def _tsv(file: DataFile, stream: BinaryIO, encoding: str) -> Iterator[Numbered]:
    """A quotation mark is a letter there, unless every field that begins with one also ends with one."""
    data = stream.read()
    quoted, plain = re.compile(rb'(?:^|\t|\n)"(?:[^"]|"")*"(?=\t|\r?\n|\Z)'), re.compile(rb'(?:^|\t|\n)"')
    without_quoted, count = quoted.subn(b"", data)
    is_quoted = count > 0 and not plain.search(without_quoted)
    yield from _table(file, io.BufferedReader(io.BytesIO(data)), encoding, "\t", '"' if is_quoted else False)


def _first_line(stream: BinaryIO, encoding: str) -> str:
    sample = stream.peek(_SAMPLE)[:_SAMPLE]  # type: ignore[attr-defined]
    return str(sample.decode(encoding, errors="replace").lstrip("\r\n").partition("\n")[0])


def _table(file: DataFile, stream: BinaryIO, encoding: str, delimiter: str, quote: str | bool) -> Iterator[Numbered]:
    """Every field as the text it is: a number that is read as one is not written the same again ("007", "1.50")."""
    import pyarrow
    import pyarrow.csv

    wide = encoding.replace("_", "-").lower().startswith(("utf-16", "utf-32"))
    inner = "utf-8" if wide or encoding == "utf-8-sig" else encoding
    bad: dict[int, Bad] = {}
    unclosed: list[str] = []

    def on_bad(row: Any) -> str:  # what it raises is lost
        if row.text.count("\n") > 1 and quote:
            unclosed.append(f"the quotation mark in row {row.number - 1:,} is never closed: {row.text[:60]!r}")
        bad[row.number - 1] = Bad(
            f"has {row.actual_columns} fields, its header {row.expected_columns}: {row.text[:60]!r}"
        )
        return "skip"

    reader = pyarrow.csv.open_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=_BLOCK, autogenerate_column_names=True, encoding=encoding if wide else "utf8"
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote), invalid_row_handler=on_bad
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=False, column_types={f"f{index}": pyarrow.binary() for index in range(4096)}
        ),
    )
    header: list[str] = []
    number = -1
    for batch in reader:
        if unclosed:
            break
        columns = [column.to_pylist() for column in batch.columns]
        for fields in zip(*columns, strict=True):
            number += 1
            while number in bad:
                yield number, bad.pop(number)
                number += 1
            try:
                texts = [field.decode(inner) for field in fields]
            except UnicodeDecodeError as error:
                if not header:
                    raise
                yield number, Bad(f"is not {encoding}: {error.reason} at byte {error.start}")
                continue
            if header:
                yield number, dict(zip(header, texts, strict=True))
            else:
                header = [text.strip() for text in texts]
                if twice := next((name for name in header if name and header.count(name) > 1), None):
                    raise DataError(f"{file.name}: two columns are named {twice!r}")
    if unclosed:
        raise DataError(f"{file.name}: {unclosed[0]}")
    yield from sorted(bad.items())


def _columns(file: DataFile, class_names: dict[str, list[str]]) -> Iterator[Numbered]:
    """Parquet, and Arrow as a file or a stream. A key that a nested object got from its neighbours is left out."""
    import pyarrow
    import pyarrow.parquet

    if file.kind == "parquet":
        source: Any = str(file.path)
        if file.compression:
            with opened(file) as stream:
                source = pyarrow.BufferReader(stream.read())
        with pyarrow.parquet.ParquetFile(source) as reader:
            class_names.update(_class_names(reader.schema_arrow))
            yield from _batches(reader.iter_batches(batch_size=1024))
        return
    with opened(file) as stream:
        data = stream.read()
    opener = pyarrow.ipc.open_file if data.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    with opener(data) as reader:
        class_names.update(_class_names(reader.schema))
        batches = (
            (reader.get_batch(n) for n in range(reader.num_record_batches)) if data.startswith(b"ARROW1") else reader
        )
        yield from _batches(batches)


def _batches(batches: Any) -> Iterator[Numbered]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, {key: without_fillers(value) for key, value in row.items()}


def without_fillers(value: Any) -> Any:
    if isinstance(value, list):
        return [without_fillers(each) for each in value]
    if isinstance(value, dict):
        return {key: without_fillers(each) for key, each in value.items() if each is not None or key == "content"}
    return value


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The names of labels, as `datasets` keeps them in a file: {"info": {"features": {column: {"names": [...]}}}}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: about.get("names") for column, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {column: [str(name) for name in names] for column, names in found.items() if isinstance(names, list)}


_READERS: dict[str, Callable[[DataFile, BinaryIO, str], Iterator[Numbered]]] = {
    "json": _json,
    "csv": _csv,
    "tsv": _tsv,
    "txt": _txt,
}
