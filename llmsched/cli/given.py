"""What a command is given to read, a file or standard input: so much of it and no more, as either may have no end."""

from __future__ import annotations

import sys
from pathlib import Path

from llmsched.errors import SpecError

AT_MOST = 1 << 20  # bytes: a controller and an endpoint take no longer request


def text(file: Path | None = None) -> str:
    """Of `file`, None: of standard input. Raises SpecError for more than AT_MOST bytes, for what is not UTF-8, and for
    a file that cannot be read."""
    place = "standard input" if file is None else str(file)
    try:
        if file is None:
            found = sys.stdin.buffer.read(AT_MOST + 1)
        else:
            with file.open("rb") as stream:
                found = stream.read(AT_MOST + 1)
    except OSError as error:
        raise SpecError(f"cannot read {place}: {error.strerror}.", code="no_file") from None
    if len(found) > AT_MOST:
        raise SpecError(f"{place} is larger than {AT_MOST >> 20} MiB.", code="too_large", hint="Give less at once.")
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise SpecError(f"{place} is not UTF-8 text.", code="not_text", hint="Convert or encode it.") from None
