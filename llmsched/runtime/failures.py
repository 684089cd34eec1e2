"""What kind of failure it is: the one place that decides whether another try can end otherwise.

    input         what the user gave is wrong, the same way every time: never tried again
    interruption  something around the work went away: a peer, a process, a node
    error         anything else: it may go better the second time

Knows neither ray nor torch; it looks at torch only where the loop has imported it.
"""

from __future__ import annotations

import sys
import traceback

from llmsched.runtime.environment import UserError

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells have it
NO_USE = 3  # of a search that found that no more trials would help
NEVER_BETTER = {
    NOT_EXECUTABLE: "a program that may not be run (126)",
    NOT_FOUND: "a program that is not there (127)",
}
# What a second reading of the same code and data cannot change. Jinja's go by name: not everybody has it.
_SAME_EVERY_TIME = (SyntaxError, ImportError, NameError, NotImplementedError)
_TEMPLATE_ERRORS = ("jinja2.",)


def event_of_code(code: int) -> str:
    """Of a command's exit code, negative for a signal."""
    return "input" if code in NEVER_BETTER else "error"


def event_of(error: BaseException) -> str:
    """Of what a rank raised."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return event_of(error.exceptions[0])
    if isinstance(error, UserError):
        return "input"
    if _is_peer_loss(error):
        return "interruption"
    if isinstance(error, SystemExit):
        return event_of_code(error.code) if isinstance(error.code, int) else "error"
    is_template = any(f"{one.__module__}.".startswith(_TEMPLATE_ERRORS) for one in type(error).__mro__)
    return "input" if is_template or isinstance(error, _SAME_EVERY_TIME) or _is_beyond_table(error) else "error"


def advice(error: BaseException) -> str:
    """What to do about it, where its own words do not say."""
    if _is_beyond_table(error):
        return (
            "a token or a position lies beyond what the model has a row for: is the tokenizer the model's, is its pad "
            "token in the vocabulary, is max_length within the model's positions?"
        )
    return ""


def is_good_exit(error: BaseException) -> bool:
    """`sys.exit()` and `sys.exit(0)`: leaving, not failing."""
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _is_beyond_table(error: BaseException) -> bool:
    """An index that an embedding of the model has no row for: the same row of data has it every time."""
    return isinstance(error, IndexError) and _raised_in(error, "torch/nn/functional.py")


def _is_peer_loss(error: BaseException) -> bool:
    """True for what a healthy rank sees when another one dies in a collective: not this rank's fault."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return (
        isinstance(error, (dist.DistNetworkError, dist.DistBackendError))
        or any(words in text for words in ("gloo", "connection closed by peer", "connection reset by peer"))
        or (type(error) is RuntimeError and _raised_in(error, "torch/distributed/"))  # its words change with the moment
    )


def _raised_in(error: BaseException, place: str) -> bool:
    """Whether the innermost Python frame of the error lies in `place`."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and place in frames[-1].filename
