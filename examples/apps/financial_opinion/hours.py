"""The desk's day: whom the monitor tells when the crowd shouts, and when it closes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from measuring import until

from llmsched import Client

HERE, SOON, BEFORE_S = Path(__file__).parent, timedelta(seconds=80), 15


def document(name: str) -> dict[str, Any]:
    found = yaml.safe_load_all((HERE / "spec.yaml").read_text())
    return next(one for one in found if one["name"] == name)


def tells(client: Client, url: str) -> None:
    """The monitor goes on as it runs. The address is a secret: whoever knows it may post."""
    client.set_secret("OPINION_HOOK", url)
    notice = {"url_from": "OPINION_HOOK", "on": [], "when": "alerts > 0"}
    client.apply({**document("opinion-watch"), "notify": [notice]})


def is_nearly_over(client: Client) -> None:
    """Returns when the desk is about to close, with a minute that comes."""
    close = (datetime.now(UTC) + SOON).replace(second=0)
    client.apply({**document("opinion-closing"), "schedule": {"cron": f"{close:%M %H} * * *"}})
    until(lambda: (close - datetime.now(UTC)).total_seconds() < BEFORE_S, "the desk is about to close")
