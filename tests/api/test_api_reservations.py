"""reserve and reservations: from the command line to the core and back, and who may."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from live import Live, command_line
from waiting import PATIENCE_S

from llmsched.errors import NotAllowed, RequestError, SpecError

QUEUE = ("--queue", "default")
FAR = "2099-01-31T08:00Z"


@pytest.fixture
def llmsched(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> Any:
    return command_line(fresh, monkeypatch)


def test_reserve_show_and_cancel(llmsched: Any, fresh: Live) -> None:
    assert "Nothing is reserved" in llmsched("reservations").output
    made = llmsched("reserve", "release", "A100:4", "--from", FAR, "--for", "4h", "--queue", "default")
    assert made.exit_code == 0, made.output
    said = " ".join(llmsched("reservations").output.split())
    assert "release coming 2099-01-31 08:00 4 h" in said and "4 A100 queue default, on node-" in said
    (one,) = json.loads(llmsched("reservations", "--json").output)["reservations"]
    assert (one["name"], one["closes"] - one["opens"], len(one["nodes"])) == ("release", 4 * 3600, 1)
    assert one["by"] != ""
    assert fresh.client().config().configuration["reservations"] == []  # which is the file's
    assert llmsched("reserve", "release", "--cancel").exit_code == 0
    assert fresh.client().reservations() == []


def test_it_is_open_from_now_on_and_for_nobody(llmsched: Any, fresh: Live) -> None:
    assert "nobody (maintenance)" in " ".join(
        llmsched("reserve", "fans", "A100:8", "--for", "1h", "--maintenance").output.split()
    )
    (one,) = fresh.client().reservations()
    assert one.state == "open" and sorted(one.nodes) == ["node-1", "node-2"]
    body = {"name": "w", "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["A100:1"]}}
    fresh.client().apply([body])
    deadline = time.monotonic() + PATIENCE_S
    while (reason := fresh.client().status("w").reason) is None:
        assert time.monotonic() < deadline
    assert (reason.code, "fans" in reason.message) == ("reservation", True)


def test_another_cluster_file_leaves_it_alone(fresh: Live, tmp_path: Path) -> None:
    client = fresh.client()
    client.reserve({"name": "release", "accelerators": "A100:4", "start": FAR, "duration": "4h", "users": ["ann"]})
    file = tmp_path / "llmsched.yaml"
    file.write_text(f"reservations: [{{name: weekly, accelerators: 'A100:2', start: '{FAR}', duration: 1h}}]\n")
    client.configure(file)
    assert [(one.name, one.by != "") for one in client.reservations()] == [("release", True), ("weekly", False)]
    with pytest.raises(RequestError, match="stands in the cluster file"):
        client.end_reservation("weekly")
    file.write_text(file.read_text().replace("weekly", "release"))
    with pytest.raises(RequestError, match="llmsched reserve"):
        client.configure(file)


def test_what_is_wrong_with_it_is_said(llmsched: Any, fresh: Live) -> None:
    for words, code, said in (
        (("release", "--for", "4h"), 2, "what to reserve"),
        (("release", "A100:4", "--for", "soon", *QUEUE), 2, "duration"),
        (("release", "A100:4", "--for", "1h", "--from", "2001-01-01T00:00Z", *QUEUE), 3, "over before now"),
        (("release", "A100:9", "--for", "1h", *QUEUE), 3, "at most 8"),
        (("release", "B100:1", "--for", "1h", *QUEUE), 3, "at most 0"),
        (("release", "A100:1", "--for", "1h", "--queue", "nope"), 3, "Known queues: default"),
        (("release", "A100:1", "--for", "1h", "--repeat", "daily", *QUEUE), 2, "repeat"),
        (("release", "A100:1", "--for", "1h"), 2, "for whom is missing"),
        (("release", "A100:1", "--for", "1h", "--maintenance", *QUEUE), 2, "maintenance is for nobody"),
        (("release", "--cancel"), 3, 'no reservation is called "release"'),
        (("release", "A100:1", "--cancel"), 2, "the name alone"),
    ):
        done = llmsched("reserve", *words)
        assert done.exit_code == code, (words, done.output)
        assert said in " ".join(done.output.split()), (words, done.output)
    assert fresh.client().reservations() == []
    with pytest.raises(SpecError, match="durations"):
        fresh.client().reserve({"name": "x", "accelerators": "A100:1", "start": FAR, "durations": "4h"})


def test_only_an_operator_may(fresh: Live) -> None:
    entry = {"name": "release", "accelerators": "A100:4", "start": FAR, "duration": "4h"}
    ann = fresh.client(fresh.token_of("ann", "submitter"))
    assert ann.reservations() == []
    for forbidden in (lambda: ann.reserve(entry), lambda: ann.end_reservation("release")):
        with pytest.raises(NotAllowed):
            forbidden()
