"""httpx without its command line, which it imports where rich and pygments happen to be installed.

That import takes as long as all the rest of httpx, and every short command of ours would wait for it.
"""

from __future__ import annotations

import sys

_UNUSED = "httpx._main"

if "httpx" not in sys.modules:
    sys.modules[_UNUSED] = None  # type: ignore[assignment]  # an ImportError, for which httpx is prepared
import httpx  # noqa: E402

if sys.modules.get(_UNUSED, httpx) is None:
    del sys.modules[_UNUSED]

__all__ = ["httpx"]
