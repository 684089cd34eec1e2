"""usage: from the journal to the command line, for whom, and as Prometheus has it."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live, command_line
from waiting import wait_until

from llmsched.api import usage
from llmsched.client.core import AsyncClient
from llmsched.control.archive import StoreArchive, VerifiedArchive
from llmsched.control.recovery import fold_all
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import Archived, Bound, Finished, NodeJoined, Submitted, Tick
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.usage import Amounts
from llmsched.errors import RequestError, SpecError
from llmsched.executors.fake import Script
from llmsched.executors.port import KeyUsageSeen, KeyUse
from llmsched.policies.registry import load
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json
from llmsched.spec.usage_models import UsageView
from llmsched.store.journal import Batch
from llmsched.store.reading import moment_of
from llmsched.store.sqlite import SqliteStore


def task(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["A100:1"]}} | more


@pytest.fixture
def llmsched(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> Any:
    return command_line(fresh, monkeypatch)


def test_each_sees_their_own_and_an_operator_all(llmsched: Any, fresh: Live) -> None:
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=0.05)
    ann, bob = fresh.client(fresh.token_of("ann", "submitter")), fresh.client(fresh.token_of("bob", "submitter"))
    ann.apply(task("hers")).wait()
    bob.apply(task("his")).wait()
    everything = fresh.client().usage(by=["user", "workload"])
    assert sorted((line.user, line.workload) for line in everything.lines) == [("ann", "hers"), ("bob", "his")]
    assert sum(line.exact.own for line in everything.lines) == everything.total.exact.own > 0
    assert everything.total.gpu_hours == pytest.approx(everything.total.exact.own / 3.6e9)
    assert everything.total.cost is None
    (mine,) = ann.usage(by=["workload"]).lines
    assert (mine.workload, mine.user, mine.exact.own) == ("hers", None, everything.lines[0].exact.own) or mine.exact.own
    assert ann.usage(by=["user"]).total.exact.own == mine.exact.own < everything.total.exact.own
    shown = llmsched("usage", "--by", "user,workload,day")
    assert shown.exit_code == 0 and re.search(r"ann +hers +\d{4}-\d\d-\d\d", shown.output), shown.output
    rows = list(csv.DictReader(StringIO(llmsched("usage", "--by", "user,workload", "--csv").output)))
    assert {row["user"]: row["workload"] for row in rows} == {"ann": "hers", "bob": "his"}
    assert json.loads(llmsched("usage", "--json").output)["by"] == ["user", "queue"]
    text = metrics(fresh, fresh.token)
    assert 'llmsched_gpu_seconds_total{queue="default",user="bob",share="own"}' in text
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    bob.apply(task("his-own"))
    wait_until(lambda: bob.status("his-own").phase == "running")
    series = 'llmsched_workload_gpu_seconds_total{workload="his-own",kind="task",queue="default",user="bob"}'
    assert series in metrics(fresh, fresh.token)
    assert "bob" not in metrics(fresh, fresh.token_of("ann", "submitter"))


def metrics(fresh: Live, token: str) -> str:
    return httpx.get(f"{fresh.url}/api/v1/metrics", headers={"authorization": f"Bearer {token}"}).text


def test_what_keys_have_used_is_counted_once_however_often_it_is_told_and_each_sees_their_own(
    llmsched: Any, fresh: Live
) -> None:
    today = int(fresh.controller.now // 86_400)
    tell = fresh.executor.cluster.say
    tell(KeyUsageSeen("g1", (KeyUse(today, "k-ann", "ann", "qwen", 1, 100, 20, 0),)))
    first = KeyUse(today, "k-ann", "ann", "qwen", 3, 300, 60, 128)
    for _ in range(2):  # it grew, and came again after a loss
        tell(KeyUsageSeen("g1", (first, KeyUse(today, "k-bob", "bob", "qwen:sql", 1, 5, 1, 0))))
    tell(KeyUsageSeen("g2", (KeyUse(today, "k-ann", "ann", "qwen", 1, 10, 2, 0),)))
    wait_until(lambda: fresh.client().key_usage().total.requests == 5)
    wait_until(lambda: not fresh.controller.key_usage._pending)  # written
    view = fresh.client().key_usage(by=["user", "model", "day"])
    lines = [(line.user, line.model, line.requests, line.prompt_tokens, line.cached_tokens) for line in view.lines]
    assert lines == [("ann", "qwen", 4, 310, 128), ("bob", "qwen:sql", 1, 5, 0)]
    assert view.lines[0].day == view.until and view.lines[0].key is None
    ann = fresh.client(fresh.token_of("ann", "submitter"))
    assert [(line.key, line.completion_tokens) for line in ann.key_usage(by=["key"]).lines] == [("k-ann", 62)]
    shown = llmsched("usage", "--by", "key")
    assert shown.exit_code == 0 and re.search(r"k-ann +4 +310 +62 +128", shown.output), shown.output
    assert json.loads(llmsched("usage", "--by", "key,model", "--json").output)["total"]["requests"] == 5


def test_a_hundred_thousand_lines_are_written_in_portions_and_all_of_them_read_back() -> None:
    found = {(f"u{n % 7}", f"w{n}", f"2030-01-{n % 28 + 1:02}"): Amounts(n, 1, 2, 3, n % 2) for n in range(1_200)}
    names: list[Any] = ["user", "workload", "day"]
    lines = usage._largest(names, found, 1_100)
    assert [key[2] for key, _ in lines] == sorted(key[2] for key, _ in lines)
    assert min(amounts.held for _, amounts in lines) == 101
    around = {"by": names, "since": "a", "until": "b", "total": {}, "left_out": 100}
    pieces = [*usage._json(around, names, lines)]
    assert len(pieces) > 3  # the loop answers others between two
    view = UsageView.model_validate_json("".join(pieces))
    assert [(line.user, line.workload, line.day) for line in view.lines] == [key for key, _ in lines]
    assert [Amounts(**line.exact.model_dump()) for line in view.lines] == [amounts for _, amounts in lines]
    assert usage._total(found).own == sum(range(1_200)) and usage._total({}) == Amounts()
    rows = list(csv.DictReader(StringIO("".join(usage._csv(names, lines)))))
    assert [row["workload"] for row in rows] == [key[1] for key, _ in lines]


def test_what_is_wrong_with_the_question_is_said(llmsched: Any, fresh: Live) -> None:
    for words, code, said in (
        (("--by", "team"), 2, '"team" is nothing to add up by'),
        (("--by", ","), 2, "Choose of user, queue"),
        (
            ("--since", "yesterday"),
            3,
            'since: expected a day such as 2030-01-31, or how long ago: 30d, found "yesterday"',
        ),
        (("--until", "30d"), 3, 'until: expected a day such as 2030-01-31, found "30d"'),
        (("--csv", "--json"), 2, "two forms of one answer"),
        (("--by", "key,queue"), 2, '"queue" is nothing to add up by for keys'),
        (("--by", "model", "--csv"), 2, "--csv has GPU-hours alone"),
    ):
        found = llmsched("usage", *words)
        assert (found.exit_code, said in " ".join(found.output.split())) == (code, True), found.output
    with pytest.raises(RequestError):
        fresh.client().usage(since="2030-13-01")
    with pytest.raises(SpecError, match='no query parameter "user"'):  # it would be everybody's hours
        fresh.do(fresh_ask(fresh, "/api/v1/usage", user="ann"))


async def fresh_ask(fresh: Live, path: str, **params: str) -> UsageView:
    client = AsyncClient(fresh.url, fresh.token)
    try:
        return await client._http.ask(UsageView, "GET", path, params=params)
    finally:
        await client.close()


def test_the_store_has_what_left_the_state_and_fsck_finds_what_was_changed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.sqlite")
    store.open()
    store.take_over("test", store.lease())
    archive = StoreArchive(store)
    state, journal = State(archive=archive), []

    def happens(*facts: Any) -> None:
        for fact in facts:
            journal.extend([fact, *turn(state, [fact], POLICIES).decisions])

    happens(NodeJoined(1.0, Node("n", Resources(8000, 80_000), "A100")))
    for n in range(3):
        happens(Submitted(2.0 + n, compile_workload(load_json(task(f"w{n}")))))
        happens(Bound(2.0 + n, f"w{n}/0", 1), Finished(10.0 + n, f"w{n}/0", 1, "succeeded"))
    happens(Archived(20.0, ("w0", "w1")), Tick(30.0))
    store.commit(Batch(30.0, journal, archive.unwritten())).result()
    store.close()
    with moment_of(tmp_path / "state.sqlite") as moment:
        verified = VerifiedArchive(moment)
        assert fold_all(moment, verified)[0].digest() == state.digest()
        assert (verified.differences, moment.broken_tables()) == ([], [])
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        db.execute("UPDATE usage SET amounts = '9 0 0 0 0' WHERE workload = 'w1'")
    db.close()
    with moment_of(tmp_path / "state.sqlite") as moment:
        verified = VerifiedArchive(moment)
        fold_all(moment, verified)
        assert "usage" in verified.differences[0] and "changed" in verified.differences[0]
        assert any("usage: the row of 0, w1" in one for one in moment.broken_tables())


POLICIES = load(PolicyNames())
