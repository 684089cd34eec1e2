"""--json of every command: the API's model and nothing else on stdout, for errors too; by the table of routes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import contract
import pytest
from click.testing import CliRunner, Result
from live import Live, Parrot
from test_contract_sdk import command_of, how_it_goes
from waiting import PATIENCE_S, wait_until

from llmsched.cli.main import ALL, cli
from llmsched.spec import http_models, node_models, trial_models, usage_models

SPEC = """\
name: {name}
kind: task
workers: 1..2
resources: {{accelerators: "A100:2"}}
task: {{run: ["true"]}}
"""
# The words after each command of the route table; several of one command one after the other, in the order of the page.
WORDS: dict[str, tuple[str, ...]] = {
    "POST /api/v1/plan": ("-f", "new.yaml"),
    "POST /api/v1/apply": ("-f", "work.yaml"),
    "GET /api/v1/workloads": (),
    "GET /api/v1/workloads/{name}": ("work",),
    "GET /api/v1/workloads/{name}/why": ("work",),
    "GET /api/v1/workloads/{name}/story": ("work",),
    "GET /api/v1/workloads/{name}/diagnose": ("work",),
    "GET /api/v1/workloads/{name}/trials": ("search",),
    "GET /api/v1/workloads/{name}/logs": ("work",),
    "POST /api/v1/workloads/{name}/exec": ("work", "--", "echo", "here"),
    "POST /api/v1/workloads/{name}/scale": ("work", "1"),
    "POST /api/v1/workloads/{name}/rollback": ("web",),
    "POST /api/v1/workloads/{name}/cancel": ("other",),
    "GET /api/v1/events": (),
    "GET /api/v1/usage": (),
    "GET /api/v1/usage/keys": ("--by", "key"),
    "GET /api/v1/queues": (),
    "GET /api/v1/nodes": (),
    "GET /api/v1/models": (),
    "GET /api/v1/secrets": (),
    "PUT /api/v1/secrets/{name}": ("TOKEN", "--from-file", "value"),
    "DELETE /api/v1/secrets/{name}": ("TOKEN",),
    "POST /api/v1/nodes/{name}/drain": ("node-2", "--by", "2h"),
    "DELETE /api/v1/nodes/{name}/drain": ("node-2",),
    "GET /api/v1/reservations": (),
    "POST /api/v1/reservations": ("r", "A100:1", "--from", "2099-01-31T08:00Z", "--for", "1h", "--queue", "default"),
    "DELETE /api/v1/reservations/{name}": ("r", "--cancel"),
    "GET /api/v1/config": (),
    "PUT /api/v1/config": ("-f", "cluster.yaml"),
}
MODELS = (http_models, node_models, trial_models, usage_models)
# These are made of what several routes answer, or of files of the home.
OF_THEIR_OWN = {"GET /api/v1/workloads/{name}/dashboard/{part}", "GET /api/v1/dashboard/{part}"}  # until Ctrl-C
OF_THEIR_OWN |= {"WEBSOCKET /api/v1/workloads/{name}/by-hand"}
OF_THEIR_OWN |= {"GET /api/v1/workloads/{name}/result", "GET /api/v1/health", "POST /api/v1/shutdown"}
UPLOADS = {"GET /api/v1/workdirs/{sha256}", "PUT /api/v1/workdirs/{sha256}"}

Run = Callable[..., Result]


@pytest.fixture
def run(controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMSCHED_ADDRESS", controller.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", controller.token)
    return lambda *words: CliRunner().invoke(cli, words)


def leaves(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from leaves(found, (*before, name))
        else:
            yield (*before, name), found


def test_every_command_takes_json() -> None:
    lacking = [" ".join(words) for words, one in leaves(cli) if "--json" not in {o for p in one.params for o in p.opts}]
    assert not lacking, f"add @show.json_option to: {lacking}"
    assert len(list(leaves(cli))) >= len(ALL)


def test_json_is_exactly_the_model_of_the_route(run: Run, controller: Live) -> None:
    controller.executor.cluster.script = how_it_goes
    Path("new.yaml").write_text(SPEC.format(name="new"))
    Path("work.yaml").write_text(SPEC.format(name="work"))
    Path("value").write_text("secret")
    Path("cluster.yaml").write_text("queues: [{name: default}, {name: lab}]\n")
    task = {"run": ["true"]}
    search = {"name": "search", "kind": "tune", "tune": {"task": task, "space": {"envs.SEED": {"grid": [1]}}}}
    client = controller.client()
    client.apply([{"name": "other", "kind": "task", "task": task}, search])
    web = {"name": "web", "kind": "serve", "serve": {"model": {"source": "hf://a/b"}}}
    client.apply([web])
    client.wait("web", timeout_s=PATIENCE_S)
    client.apply([{**web, "envs": {"MODE": "fast"}}])
    wait_until(lambda: client.status("web").answered == 2)
    for route, _, answer, _, command in contract.rows(contract.API, "Routes"):
        name = route.strip("`")
        if command == "-" or name in OF_THEIR_OWN | UPLOADS:
            continue
        assert name in WORDS, f"add to WORDS of {Path(__file__).name} what to type for {name}: {command}"
        words = command.strip("`").split()
        command_of(" ".join(words))
        done = run(*words, *WORDS[name], "--json") if "--" not in WORDS[name] else run(*words, "--json", *WORDS[name])
        assert done.exit_code == 0, (name, done.output)
        answered = answer.partition(",")[0]
        model: Any = next(getattr(each, answered) for each in MODELS if hasattr(each, answered))
        texts = [done.stdout] if "," not in answer else done.stdout.splitlines()
        assert texts, name
        for text in texts:
            said = json.loads(text)
            assert model.model_validate(said).model_dump(mode="json") == said, f"{name}: not exactly {answer}"
        if name.endswith("/apply"):
            wait_until(lambda: controller.client().status("work").phase == "running")


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("why", "nobody"), "unknown_workload", 3),
        (("plan", "-f", "absent.yaml"), "no_file", 2),
        (("scale", "nobody", "3"), "unknown_workload", 3),
        (("rollback", "nobody"), "unknown_workload", 3),
        (("models", "nobody"), "unknown_model", 3),
        (("chat", "qwen", "-m", "hello"), "no_endpoint", 4),
        (("sim", "run", "absent.csv"), "invalid_spec", 2),
    ],
)
def test_an_error_with_json_is_the_error_model_and_its_exit_code(
    run: Run, words: tuple[str, ...], code: str, exit_code: int
) -> None:
    done = run(*words, "--json")
    said = http_models.ErrorBody.model_validate_json(done.stdout)
    assert (said.code, said.exit_code, done.exit_code) == (code, exit_code, exit_code)


def test_chat_with_json_is_the_whole_answer_of_the_endpoint(run: Run, controller: Live) -> None:
    with controller.endpoint(Parrot()):
        said = json.loads(run("chat", "qwen", "-m", "hello", "--json").stdout)
    assert said["choices"][0]["message"]["content"] == "hello"
