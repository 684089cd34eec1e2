"""Every example of the contract page is typed into a shell against a real controller and answers what the page shows;
every table of it is what the code has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import contract
import httpx
import jsonschema
import pytest
from live import Live
from pydantic import BaseModel
from waiting import PATIENCE_S, wait_until

from llmsched import errors
from llmsched.api.app import every_route, need_of
from llmsched.core import explain
from llmsched.core.status import Status
from llmsched.executors.fake import Script
from llmsched.executors.port import KeyUsageSeen, KeyUse
from llmsched.spec import http_models

ASKED = re.compile(r"^asked (\d+) (\w+) (\S+)$", re.M)


PAGE = contract.API.relative_to(contract.ROOT)
NOT_OVER_HTTP = ("host", "port_in_use", "already_running")  # the same codes tell why a controller does not start
ROUTES: list[Any] = every_route()


class Ran(NamedTuple):
    example: contract.Example
    answered: str
    status: int
    method: str
    url: str


def how_it_goes(order: Any) -> Script:
    if order.kind == "train":
        return Script(runs_for_s=0.01, steps=1, metrics={"eval.loss": 0.41})
    return Script(runs_for_s=None)


def is_settled(controller: Live) -> bool:
    state = controller.controller.state
    now = [record.phase for record in state.workloads.values()]
    waiting = [gang for gang in state.gangs.values() if gang.status.value == "QUEUED"]
    training = [record for record in state.workloads.values() if record.workload.kind == "train" and not record.outcome]
    return not training and not {"starting", "resizing", "stopping"} & set(now) and all(gang.reason for gang in waiting)


@pytest.fixture(scope="module")
def ran(controller: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Ran]]:
    """The page from top to bottom. curl is told to say on stderr what it asked, and how that was answered."""
    if shutil.which("curl") is None:
        pytest.skip("THE CONTRACT PAGE WAS NOT RUN: there is no curl here. Install it.")
    folder = tmp_path_factory.mktemp("shell")
    (folder / ".curlrc").write_text(
        'silent\nwrite-out = "%{stderr}asked %{response_code} %{method} %{url_effective}\\n"\n'
    )
    controller.executor.cluster.script = how_it_goes
    used = KeyUse(int(controller.controller.now // 86_400), "5f0c1a2b", "ann", "assistant", 120, 81_000, 9_500, 64_000)
    controller.executor.cluster.say(KeyUsageSeen("gateway", (used,)))
    log = controller.home / "storage" / "hello" / "0" / "1" / "logs" / "0.log"  # as a worker writes it
    log.parent.mkdir(parents=True)
    log.write_text("loading\nhello\nbye\n")
    left = controller.home / "storage" / "tones" / "0" / "artifact" / "1-1" / "config.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    env = {"PATH": "/usr/bin:/bin", "CURL_HOME": str(folder)}
    env |= {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    first, *rest = contract.examples(contract.API, "bash")
    done = []
    for example in rest:
        script = first.typed + example.typed
        shell = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert shell.returncode == 0, f"{example.typed}{shell.stderr}"
        (asked,) = ASKED.findall(shell.stderr)
        done.append(Ran(example, shell.stdout, int(asked[0]), asked[1], asked[2].removeprefix(controller.url)))
        wait_until(lambda: is_settled(controller), what=f"quiet after {example.typed}")
    return done


def wrong(example: contract.Example, answered: str) -> list[str]:
    """Where the answer is not what the page shows: JSON by its keys, lines one by one, events by their data."""
    if example.form == "json":
        return contract.missing(json.loads(example.shown), json.loads(answered))
    shown, real = example.shown.strip().split("\n"), answered.strip().split("\n")
    if len(shown) != len(real):
        return [f"{len(real)} lines, not {len(shown)}"]
    found = []
    for one, other in zip(shown, real, strict=True):
        if example.form == "ndjson" or one.startswith("data:"):
            found += contract.missing(json.loads(one.removeprefix("data:")), json.loads(other.removeprefix("data:")))
        elif one != other:
            found.append(f"{other!r}, not {one!r}")
    return found


def test_every_example_of_the_page_answers_what_the_page_shows(ran: list[Ran]) -> None:
    differ = [
        "\n".join([f"{PAGE}: {one.example.typed}", *wrong(one.example, one.answered), f"answered: {one.answered}"])
        for one in ran
        if one.example.form == "" or wrong(one.example, one.answered)
    ]
    assert not differ, "\n\n".join(differ)


def test_a_page_that_is_wrong_would_be_found(ran: list[Ran]) -> None:
    one = next(each for each in ran if each.url == "/healthz")
    for shown in ('{"status": "fine"}', '{"state": "ok"}', '{"status": ["ok"]}'):
        assert wrong(one.example._replace(shown=shown), one.answered)


def route_of(one: Ran) -> str:
    path = one.url.partition("?")[0]
    return next(
        f"{one.method} {each.path_format}"
        for each in ROUTES
        if each.path_regex.match(path) and one.method in getattr(each, "methods", ())
    )


def test_every_route_has_an_example_that_works(ran: list[Ran]) -> None:
    lacking = set(contract.routes()) - {route_of(one) for one in ran if one.status < 300}
    assert not lacking, f"add to {PAGE} a ```bash block with curl, and a ```json block with its answer, for: {lacking}"


# --- OpenAPI -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(controller: Live) -> dict[str, Any]:
    answer = httpx.get(
        f"{controller.url}/openapi.json", headers={"authorization": f"Bearer {controller.token}"}, timeout=60
    )
    found: dict[str, Any] = answer.json()
    return found


def operations(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def check(described: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    whole = {"components": described["components"], **schema}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_openapi_describes_every_route_with_examples_that_are_valid(described: dict[str, Any]) -> None:
    told = operations(described)
    assert set(told) == set(contract.routes())
    for name, operation in told.items():
        assert operation["summary"] and operation.get("description"), f"{name}: write a docstring"
        is_open = name == "GET /healthz"
        assert is_open or operation["security"] == [{"bearer": []}]
        assert is_open or {"4XX", "5XX"} <= operation["responses"].keys(), name
        asked = operation.get("requestBody", {}).get("content", {})
        answered = operation["responses"]["200"]["content"]
        assert answered, name
        for kind, content in [*asked.items(), *answered.items()]:
            if kind == "application/zip":
                continue
            assert "example" in content, f"{name}: show in {PAGE} an answer with every key that the model requires"
            check(described, content["schema"], content["example"])


def test_every_real_answer_is_what_openapi_says(ran: list[Ran], described: dict[str, Any]) -> None:
    told = operations(described)
    seen = 0
    for one in ran:
        responses = told[route_of(one)]["responses"]
        said = responses["200" if one.status == 200 else f"{one.status // 100}XX"]["content"]
        if "application/json" in said:
            check(described, said["application/json"]["schema"], json.loads(one.answered))
            seen += 1
        elif one.example.form == "ndjson":
            model = http_models.ExecLine if "/exec" in one.url else http_models.LogLine
            for line in one.answered.strip().split("\n"):
                assert model.model_validate_json(line).model_dump(mode="json") == json.loads(line)
    assert seen > 20


# --- tables --------------------------------------------------------------------------------------------------------


def same(heading: str, real: set[str], what: str) -> None:
    told = set(contract.first_cells(contract.API, heading))
    assert not real - told, f"add to the table of {PAGE}, {heading!r}, a row for: {what} {sorted(real - told)}"
    assert not told - real, f"take out of the table of {PAGE}, {heading!r}: {sorted(told - real)}"


def test_the_tables_of_the_page_are_the_code() -> None:
    same("Routes", {*contract.routes(), *contract.sockets()}, "the route")
    same("Phases", set(get_args(http_models.Phase)), "the phase")
    same("Why it waits", set(explain.WAITS), "the reason")
    same("Why something was taken", set(explain.TAKEN), "the reason")
    exits = {kind.exit_code for kind in contract.BY_CLASS.values() if issubclass(kind, errors.LlmschedError)}
    same("Exit codes", {"0", "130", *map(str, exits)}, "the exit code")
    text = contract.API.read_text().split("## Phases")[1].split("## Why it waits")[0]
    assert {status.value for status in Status} <= set(re.findall(r"`(\w+)`", text))


def test_every_reason_that_the_core_gives_is_listed_in_explain() -> None:
    assert contract.literals(["Reason", "Refused"], 0) <= set(explain.WAITS)
    assert contract.literals(["Preempt"], 3) | contract.literals(["resize"], 4) <= set(explain.TAKEN)


def test_every_error_code_is_on_the_page_with_its_status() -> None:
    answered = list(contract.error_codes(contract.ANSWERING))
    same("Codes of the controller", {code.name for code in answered}, "the error code")
    rows = contract.API.read_text().split("### Codes of the controller")[1].split("###")[0].splitlines()
    for code in answered:
        row = next(line for line in rows if f"`{code.name}`" in line)
        said = row.split("|")[2].split()
        assert code.status is None or code.name in NOT_OVER_HTTP or str(code.status) in said, f"{code}: {row}"
    own = {code.name for code in contract.error_codes(contract.ASKING)} - {code.name for code in answered}
    same("Codes of client and command line", own, "the error code")


def test_every_code_of_an_endpoint_is_on_the_page() -> None:
    same("Codes of the endpoint", contract.endpoint_codes(), "the error code")


def test_what_the_route_table_says_of_needs_and_models_is_so() -> None:
    for line in contract.rows(contract.API, "Routes"):
        method, path = line[0].strip("`").split(" ")
        route = next(
            each for each in ROUTES if each.path_format == path and method in getattr(each, "methods", ["WEBSOCKET"])
        )
        assert line[1] == (need_of(route) or "none"), line
        model = getattr(route, "response_model", None)
        is_model = isinstance(model, type) and issubclass(model, BaseModel)
        assert not is_model or line[2] == model.__name__, line
