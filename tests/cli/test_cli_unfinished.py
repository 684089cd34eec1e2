"""What had not ended is named when a controller starts where nobody can be asked."""

from __future__ import annotations

import pytest
from live import Live

from llmsched.cli import unfinished


def test_the_first_are_named_and_the_others_counted(fresh: Live, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"kind": "task", "task": {"run": ["true"]}, "schedule": {"cron": "0 2 1 1 *"}}
    with fresh.client() as client:
        unfinished.tell(client)
        assert capsys.readouterr().err == "", "nothing goes on, so nothing is said"
        client.apply([{**task, "name": f"waits-{i}"} for i in range(2)])
        unfinished.tell(client)
        assert "Not ended yet: waits-0, waits-1.\nThey go on." in capsys.readouterr().err
        client.apply([{**task, "name": f"more-{i}"} for i in range(unfinished.NAMED)])
        unfinished.tell(client)
        assert " and 2 more.\nThey go on." in capsys.readouterr().err
        client.cancel("more-0")
        unfinished.tell(client)
        assert " and 1 more.\nThey go on." in capsys.readouterr().err
