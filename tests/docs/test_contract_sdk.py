"""The page of the SDK runs from top to bottom; both clients are one; every route, and every command, is reached."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import contract
import pytest
from live import Live, Parrot
from waiting import PATIENCE_S

from llmsched import errors
from llmsched.cli.main import cli
from llmsched.client import AsyncClient, Client
from llmsched.client.chat import AsyncChat
from llmsched.client.client import Chat
from llmsched.executors.fake import Script

PAGE = contract.SDK.relative_to(contract.ROOT)


def how_it_goes(order: Any) -> Script:
    if order.kind == "train":
        return Script(runs_for_s=0.01, steps=1, metrics={"eval.loss": 0.41})
    return Script(runs_for_s=None)


def test_the_page_of_the_sdk_runs_from_top_to_bottom(controller: Live, tmp_path: Path) -> None:
    """As one script in a process of its own, which finds the controller as a user's would."""
    controller.executor.cluster.script = how_it_goes
    script = tmp_path / "page.py"
    script.write_text("\n".join(example.typed for example in contract.examples(contract.SDK, "python")))
    env = {**os.environ, "LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    with controller.endpoint(Parrot()):
        ran = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert "stdout here" in ran.stdout and "end  0" in said
    assert "word by word" in said and "Did you mean loop?" in said
    assert said[0].startswith("0.41 ")


def public(kind: type) -> dict[str, Any]:
    own = [name for each in kind.__mro__[:-1] for name in vars(each)]
    return {name: inspect.getattr_static(kind, name) for name in own if not name.startswith("_")}


@pytest.mark.parametrize(("plain", "awaited"), [(Client, AsyncClient), (Chat, AsyncChat)])
def test_both_clients_have_the_same_methods_with_the_same_arguments(plain: type, awaited: type) -> None:
    ours, theirs = public(plain), public(awaited)
    assert ours.keys() == theirs.keys(), (
        f"{plain.__name__} and {awaited.__name__} differ: {ours.keys() ^ theirs.keys()}"
    )
    for name, method in ours.items():
        if isinstance(method, property):
            assert isinstance(theirs[name], property)
            continue
        one, other = inspect.signature(method).parameters, inspect.signature(theirs[name]).parameters
        assert list(one) == list(other), f"{name}{tuple(one)} is not {name}{tuple(other)}"
        for word in one:
            same = (one[word].default, one[word].kind) == (other[word].default, other[word].kind)
            assert same, f"{name}: {word} differs"
            assert one[word].annotation == other[word].annotation, f"{name}: {word} differs"


def test_every_route_is_reached_from_the_sdk_and_from_the_command_line() -> None:
    reached = set()
    for route, _, _, method, command in contract.rows(contract.API, "Routes"):
        if method != "-":
            assert hasattr(Client, method), f"{route}: Client has no {method}"
            reached.add(method)
        if command != "-":
            command_of(command.strip("`"))
        assert (method == "-") == (command == "-"), route
    local = {"close", "url", "wait", "wait_all", "all_workloads", "chat", "usage_csv"}  # made of others
    lacking = public(Client).keys() - reached - local
    assert not lacking, f"say in the table of routes in {contract.API.name} which route these reach: {lacking}"


def test_every_route_of_the_table_is_what_its_method_asks() -> None:
    """The page's SDK column against the code: a method that names the path it asks."""
    source = inspect.getsource(AsyncClient)
    for route, _, _, method, _ in contract.rows(contract.API, "Routes"):
        if method in ("-", "apply"):  # apply: also its workdirs, by way of _upload
            continue
        asked = inspect.getsource(getattr(AsyncClient, method))
        path = route.strip("`").split(" ")[1].removeprefix("/api/v1")
        last = path.removeprefix("/workloads/{name}").strip("/").split("/")[0]
        assert (f'"{last}"' in asked or f"/api/v1/{last}" in asked) if last else "_path(name)" in asked, (route, method)
    assert "/api/v1/workdirs/" in source


def test_the_page_names_every_method_and_every_error() -> None:
    text = contract.SDK.read_text()
    unnamed = [name for name in public(Client) if not re.search(rf"\b{name}\b", text)]
    assert not unnamed, f"say in {PAGE} what these are for: {unnamed}"
    kinds = {name for name, kind in contract.BY_CLASS.items() if issubclass(kind, errors.LlmschedError)}
    assert kinds - {"LlmschedError"} == set(contract.first_cells(contract.SDK, "Errors"))


def command_of(words: str) -> click.Command:
    found: click.Command = cli
    context = click.Context(cli)
    for word in words.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(context, word)
        assert inner is not None, f"no command {words!r}"
        found = inner
    return found
