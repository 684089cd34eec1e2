"""THE BORDER for what a user's code raises: to Ray, to Serve and to whoever asked it crosses in words of ours alone.

Their exception may be of a class that nobody else can load, may refuse to be pickled or to say itself, may hold what no
encoding can write or a secret, or may end the event loop that it passes (SystemExit). So it is never raised on, nor
chained to what is: it is shown in the log of the work, and a `WorkError` with one line of valid text goes on.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmsched import sanitize
from llmsched.runtime import environment, redaction

_ORDERS = (asyncio.CancelledError, GeneratorExit)  # said to the work, not by it


class WorkError(RuntimeError):
    """What a user's code raised, in words."""


def words(error: BaseException, folder: Path | None = None) -> str:
    """One line: type, message, and where (in `folder`, if anything of it is there). Of a WorkError what it says: that
    was put into words where it was raised."""
    if isinstance(error, WorkError):
        return sanitize.text(redaction.clean(str(error)))
    return sanitize.text(redaction.clean(environment.explain(error, folder)))


def show(error: BaseException) -> None:
    """With its traceback, in the log of the work."""
    try:
        told = "".join(traceback.format_exception(error))
    except Exception:  # one that cannot be put into words, or a chain of them
        told = f"{words(error)}\n"
    print(sanitize.shown(redaction.clean(told)), file=sys.stderr, end="", flush=True)


@contextmanager
def in_words(mark: str = "") -> Iterator[None]:
    """Within, a user's code runs; what it raises comes out as WorkError, `mark` before its words."""
    try:
        yield
    except (*_ORDERS, WorkError):
        raise
    except BaseException as error:
        show(error)
        raise WorkError(mark + words(error)) from None
