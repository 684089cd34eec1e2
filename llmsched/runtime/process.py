"""What every process that we start for a user needs: it must not outlive whoever watches it, and it hears signals."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def prepare_child() -> None:
    """In the child, before exec. If its parent is killed, it must not live on without anybody watching. Ray blocks
    SIGINT in all that it starts, and a shell in the background ignores it: whoever is started there would never hear of
    Ctrl-C."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for each in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(each, signal.SIG_DFL)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
