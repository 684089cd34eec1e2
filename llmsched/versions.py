"""Which clients, controllers and nodes go together: those of one major version, and before 1.0 of one minor version.

Client and controller say theirs in every message (HEADER) and either refuses the other; an order to a worker says the
controller's, and a node of another one refuses it (runtime/environment.py). Looking at the health of a controller and
stopping it work with any, so that a newer command line can put an older controller away. A message without the header
comes from something else than our client, and is taken as it is.
"""

from __future__ import annotations

import re

OWN = "0.1.0"  # pyproject.toml reads it here
HEADER = "x-llmsched-version"
ANY_VERSION = ("/api/v1/health", "/api/v1/shutdown")
_FORM = re.compile(r"(\d+)\.(\d+)", re.ASCII)


def own() -> str:
    return OWN


def go_together(one: str, other: str) -> bool:
    a, b = _FORM.match(one), _FORM.match(other)
    if a is None or b is None:
        return False
    return a[1] == b[1] and (a[1] != "0" or a[2] == b[2])


def difference(client: str, controller: str) -> str:
    """What to say of two that do not; what others sent is cut and cleaned."""
    return f"the client is llmsched {_shown(client)} and the controller {_shown(controller)}."


def remedy(controller: str) -> str:
    return (
        f"Use the controller's version (pip install llmsched=={_shown(controller)}), or start the controller anew with "
        "yours: llmsched down, then llmsched up. What runs goes on meanwhile."
    )


def _shown(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z.+-]", "?", text)[:32]
