"""The command line against a real controller: what it prints, on which stream, and how it ends."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from live import Live, Parrot
from waiting import wait_until

from llmsched.cli.main import ALL, MEANT, cli
from llmsched.executors.fake import Script
from llmsched.spec import http_models

Run = Callable[..., Result]
TASK = """\
name: {name}
kind: task
resources: {{accelerators: "A100:{gpus}"}}
workers: {workers}
task: {{run: ["true"]}}
"""


def task(name: str, gpus: int = 1, workers: str = "1", more: str = "") -> str:
    return TASK.format(name=name, gpus=gpus, workers=workers) + more


@pytest.fixture
def run(controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(controller, tmp_path, monkeypatch)


def runner(controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token, "COLUMNS": "80"}
    env |= {"LLMSCHED_HOME": str(controller.home)}

    def run(*words: str, given: str | None = None) -> Result:
        result = CliRunner().invoke(cli, list(words), env=env, input=given)
        assert "Traceback" not in result.output, result.output
        return result

    return run


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "exit_code", "says"),
    [
        pytest.param("name: [", 2, "bad.yaml:2:1: not valid YAML", id="not YAML"),
        pytest.param(task("x", more="num_worker: 2\n"), 2, 'bad.yaml:6:1: unknown key "num_worker"', id="unknown key"),
        pytest.param(task("x", more="priority: high\n"), 2, "bad.yaml:6:11", id="wrong type"),
        pytest.param("", 2, "no workload", id="empty"),
        pytest.param(task("x", gpus=64), 3, "64", id="more GPUs than exist"),
        pytest.param(task("x").replace("A100", "B300"), 3, "B300", id="no such accelerator"),
        pytest.param(task("x", more="queue: nowhere\n"), 3, "nowhere", id="unknown queue"),
        pytest.param(task("x") + "---\n" + task("x"), 2, "already", id="one name twice"),
    ],
)
def test_a_wrong_file_is_refused_with_its_exit_code_and_a_sentence(
    run: Run, text: str, exit_code: int, says: str
) -> None:
    result = run("apply", "-f", write("bad.yaml", text))
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert says in result.stderr
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(("outcome", "words"), [("failed", "has failed"), ("cancelled", "has been cancelled")])
def test_the_same_file_after_its_end_says_how_to_run_it_once_more(
    run: Run, controller: Live, outcome: str, words: str
) -> None:
    """Before, it said that nothing had changed and what to look at, and nothing ran."""
    is_cancelled = outcome == "cancelled"
    controller.executor.cluster.script = lambda order: Script(
        runs_for_s=None if is_cancelled else 0.01, outcome="failed", event="input", message="no such data"
    )
    name = f"once-{outcome}"
    file = write("x.yaml", task(name))
    assert f"{name}: submitted\n" in run("apply", "-f", file).stdout
    if is_cancelled:
        run("cancel", name, "--yes")
    run("apply", "-f", file, "--wait")
    assert f"{name}: unchanged, and {words}; --again runs it once more\n" in run("apply", "-f", file).stdout


def test_plan_of_what_can_never_run_says_so_and_ends_with_3(run: Run) -> None:
    result = run("plan", "-f", write("big.yaml", task("big", gpus=64)))
    assert result.exit_code == 3
    assert "refused" in result.stdout


def test_an_endpoint_at_zero_does_not_wait_in_a_plan(run: Run) -> None:
    text = 'name: web\nkind: serve\nreplicas: 0..2\nserve: {model: {id: web, source: "hf://a/b"}}\n'
    planned = run("plan", "-f", write("web.yaml", text)).stdout
    assert "starts when it is asked" in planned and "waits" not in planned


def test_a_missing_file_a_wrong_word_and_a_missing_option_end_with_2(run: Run) -> None:
    assert run("apply", "-f", "absent.yaml").exit_code == 2
    wrong = run("statsu")
    assert wrong.exit_code == 2
    assert 'Did you mean "status"?' in wrong.stderr
    assert run("apply").exit_code == 2
    assert run("scale", "x", "-1").exit_code == 2


@pytest.mark.parametrize("word", ["dwon", "donw", "Down", "done", "town", "downs"])
def test_no_hint_leads_from_an_unknown_word_to_the_end_of_the_cluster(word: str) -> None:
    refused = CliRunner().invoke(cli, [word])
    assert refused.exit_code == 2 and f'there is no command "{word}"' in refused.stderr
    assert '"down"' not in refused.stderr


@pytest.mark.parametrize(
    ("word", "meant"), [("kill", "cancel"), ("stop", "cancel"), ("ls", "status"), ("sbatch", "apply"), ("ssh", "exec")]
)
def test_a_word_of_other_tools_leads_to_what_is_meant_whatever_it_is_spelt_like(word: str, meant: str) -> None:
    assert f'Did you mean "{meant}"?' in CliRunner().invoke(cli, [word]).stderr
    assert set(MEANT.values()) <= set(ALL) and not MEANT.keys() & ALL.keys()


def test_an_unknown_name_ends_with_3_and_the_nearest(run: Run) -> None:
    run("apply", "-f", write("a.yaml", task("sentiment")))
    for words in (("why", "sentimet"), ("status", "sentimet"), ("logs", "sentimet"), ("cancel", "sentimet")):
        result = run(*words)
        assert result.exit_code == 3
        assert "Did you mean sentiment?" in result.stderr


def test_a_wrong_token_or_no_controller_is_one_line_with_what_to_do(controller: Live, run: Run, tmp_path: Path) -> None:
    alone = {"LLMSCHED_HOME": str(tmp_path / "none"), "LLMSCHED_ADDRESS": None, "LLMSCHED_TOKEN": None}
    for env, exit_code, says in (
        ({"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": "wrong"}, 3, "not known here"),
        ({**alone, "LLMSCHED_ADDRESS": controller.url}, 3, "there is no token"),
        ({"LLMSCHED_ADDRESS": "http://127.0.0.1:1", "LLMSCHED_TOKEN": "x"}, 4, "llmsched up"),
        (alone, 4, "llmsched up"),
        ({"LLMSCHED_ADDRESS": "http://[", "LLMSCHED_TOKEN": "x"}, 2, "no address"),
    ):
        result = CliRunner().invoke(cli, ["status"], env=env)
        assert (result.exit_code, result.stdout) == (exit_code, "")
        assert says in result.stderr
        assert result.stderr.count("\n") == 1


def test_an_error_with_json_is_the_apis_model_on_stdout(run: Run) -> None:
    result = run("apply", "-f", write("bad.yaml", task("x", more="num_worker: 2\nprio: 1\n")), "--json")
    body = http_models.ErrorBody.model_validate_json(result.stdout)
    assert (result.exit_code, body.exit_code, body.code) == (2, 2, "unknown_key")
    assert [problem.where for problem in body.problems] == ["bad.yaml:6:1", "bad.yaml:7:1"]


# --- what is right --------------------------------------------------------------------------------------------------


def meanwhile_unchanged(read: Callable[[], Any], act: Callable[[], Any]) -> tuple[Any, Any]:
    """What `act` gives while `read` stays as it was: what runs reports its progress at any time."""
    while True:
        before, given, after = read(), act(), read()
        if before == after:
            return given, after


def test_json_is_exactly_the_apis_model(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    run("apply", "-f", write("a.yaml", task("modelled")))
    controller.hear("Bound", "modelled")
    with controller.client() as client:
        read: dict[tuple[str, ...], Callable[[], Any]] = {
            ("status",): client.workloads,
            ("status", "modelled"): lambda: client.status("modelled"),
            ("why", "modelled"): lambda: client.why("modelled"),
            ("story", "modelled"): lambda: client.story("modelled"),
            ("nodes",): client.nodes,
            ("queues",): client.queues,
            ("config",): client.config,
            ("plan", "-f", "a.yaml"): lambda: http_models.PlannedList(planned=client.plan("a.yaml")),
        }
        for words, model in read.items():
            result, answer = meanwhile_unchanged(model, lambda words=words: run(*words, "--json"))
            assert result.exit_code == 0
            assert json.loads(result.stdout) == answer.model_dump(mode="json"), words
        result, events = meanwhile_unchanged(lambda: list(client.events(follow=False)), lambda: run("events", "--json"))
        assert [json.loads(line) for line in result.stdout.splitlines()] == [e.model_dump(mode="json") for e in events]
    again = run("apply", "-f", "a.yaml", "--json")
    assert http_models.AppliedList.model_validate_json(again.stdout).applied[0].outcome == "unchanged"
    cancelled = run("cancel", "modelled", "--json")
    assert http_models.WorkloadView.model_validate_json(cancelled.stdout).id == "modelled"


def test_apply_waits_shows_progress_on_stderr_and_says_what_to_do_next(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.05, steps=2, metrics={"eval.loss": 0.5})
    result = run("apply", "--wait", "-f", write("a.yaml", task("waited")))
    assert result.exit_code == 0
    assert "waited: submitted" in result.stdout
    assert "waited: succeeded (eval.loss 0.5)" in result.stdout
    assert "waited succeeded" in result.stderr
    assert result.stderr.count("  llmsched ") == 3


def test_apply_waits_for_no_run_of_a_schedule_and_says_when_it_is_due(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.05)
    text = task("now") + "---\n" + task("yearly", more='schedule: {cron: "0 2 1 1 *"}\n')
    result = run("apply", "--wait", "-f", write("a.yaml", text))
    assert result.exit_code == 0
    assert "now: succeeded" in result.stdout
    assert re.search(r"yearly: waiting \(its schedule is due \d{4}-01-0\d ", result.stdout)


def test_apply_that_waits_ends_with_4_when_it_fails(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, outcome="failed", message="no such data")
    text = task("broken", more="retry: {max_restarts: 0}\n")
    result = run("apply", "--wait", "--json", "-f", write("a.yaml", text))
    assert result.exit_code == 4
    (view,) = http_models.WorkloadList.model_validate_json(result.stdout).workloads
    assert (view.phase, "no such data" in view.message) == ("failed", True)


def test_a_changed_file_prints_what_changed(run: Run) -> None:
    run("apply", "-f", write("a.yaml", task("edited", more="priority: 10\n")))
    result = run("apply", "-f", write("a.yaml", task("edited", more="priority: 20\n")))
    assert "edited: changed" in result.stdout
    assert "priority" in result.stdout and "20" in result.stdout


def test_plan_of_a_changed_file_says_what_becomes_of_what_runs(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    run("apply", "-f", write("a.yaml", task("rolled")))
    controller.hear("Bound", "rolled")
    result = run("plan", "-f", write("a.yaml", task("rolled", more="priority: 70\n")))
    assert result.stdout.splitlines()[1].split()[3] == "changed"
    assert result.stdout.splitlines()[1].endswith("saves and restarts")


def test_a_refusal_and_its_hint_are_two_sentences(run: Run) -> None:
    result = run("apply", "-f", write("a.yaml", task("x", more="queue: nowhere\n")))
    assert result.stderr == 'error: x: no queue is called "nowhere". Known queues: default.\n'


def test_up_on_a_port_that_is_taken_says_so_before_it_starts_a_ray(controller: Live, tmp_path: Path) -> None:
    from llmsched.executors import local_ray

    home = tmp_path / "home"
    port = controller.url.rpartition(":")[2]
    result = CliRunner().invoke(cli, ["up", "--port", port], env={"LLMSCHED_HOME": str(home)})
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"port {port} on 127.0.0.1 cannot be used" in result.stderr
    assert not local_ray.runtime_folder(home).exists()


@pytest.fixture
def busy(fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """One that holds everything, one that waits for it, one that ended: the state whose pictures are kept below."""
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=0.02 if order.workload == "done" else None)
    run = runner(fresh, tmp_path, monkeypatch)
    run("apply", "--wait", "-f", write("done.yaml", task("done")))
    holds, long = task("holds", gpus=4, workers="2"), task("a-name-that-is-much-longer-than-a-column", gpus=4)
    run("apply", "-f", write("all.yaml", holds + "priority: 90\n---\n" + long))
    fresh.hear("Bound", "holds")
    yield run


def test_status_fits_eighty_columns(busy: Run) -> None:
    lines = busy("status").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    words = [line.split() for line in lines]
    assert words[0] == ["NAME", "KIND", "PHASE", "SIZE", "GPUS", "AGE", "WHAT"]
    assert [row[:5] for row in words[1:6]] == [
        ["holds", "task", "running", "2/2", "8"],
        ["a-name-that-is-much-longer-…", "task", "waiting", "0/1", "-"],
        ["done", "task", "succeeded", "-", "-"],
        [],
        ["a-name-that-is-much-longer-than-a-column", "waits:", "needs", "1", "x"],
    ]


def test_nodes_and_queues_fit_eighty_columns(busy: Run) -> None:
    nodes = busy("nodes").stdout.splitlines()
    assert [line.split()[:3] for line in nodes] == [
        ["NODE", "FLAVOR", "GPUS"],
        ["node-1", "A100", "0/4"],
        ["node-2", "A100", "0/4"],
    ]
    assert nodes[1].endswith("holds")
    queues = busy("queues").stdout.splitlines()
    assert queues[1].split() == ["default", "-", "1", "1", "8", "the", "whole", "cluster"]
    assert max(map(len, [*nodes, *queues])) <= 80


def test_why_says_the_reason_its_code_and_the_place(busy: Run) -> None:
    waits = busy("why", "a-name-that-is-much-longer-than-a-column").stdout
    assert waits.startswith("a-name-that-is-much-longer-than-a-column waits (")
    assert "Code: " in waits
    runs = busy("why", "holds").stdout
    assert runs.startswith("holds runs (")
    assert "node-1 (1), node-2 (1)" in runs


def test_story_tells_the_life_in_words(busy: Run) -> None:
    lines = busy("story", "done").stdout.splitlines()
    assert [line.split(" s  ")[1].split()[0] for line in lines[:3]] == ["submitted", "starts", "runs"]
    assert lines[-1].endswith("succeeded")


def test_one_workload_in_full(busy: Run) -> None:
    shown = busy("status", "holds").stdout
    assert "holds  task, running" in shown
    assert "priority 90" in shown
    assert "node-1 (1), node-2 (1)" in shown


def test_logs_say_whose_line_it_is_when_there_are_several(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01)
    run("apply", "--wait", "-f", write("a.yaml", task("written", workers="2")))
    nothing = run("logs", "written")
    assert (nothing.stdout, nothing.exit_code) == ("", 0)
    assert "no log" in nothing.stderr
    folder = controller.home / "storage/written/0/1/logs"
    folder.mkdir(parents=True)
    (folder / "0.log").write_text("one\n")
    assert run("logs", "written").stdout == "[0.0] one\n"
    (folder / "1.log").write_text("two\n")
    assert run("logs", "-f", "written").stdout == "[0.0] one\n[0.1] two\n"
    assert [json.loads(line)["text"] for line in run("logs", "written", "--json").stdout.splitlines()] == ["one", "two"]


def test_chat_answers_one_question_from_an_option_or_a_pipe(controller: Live, run: Run) -> None:
    assert run("chat", "qwen", "-m", "hi").exit_code == 4
    with controller.endpoint(Parrot()):
        assert run("chat", "qwen", "-m", "hello there").stdout == "hellothere\n"
        assert run("chat", "qwen", "--no-stream", given="from a pipe\n").stdout == "from a pipe\n"
        answer = json.loads(run("chat", "qwen", "-m", "hi", "--json").stdout)
        assert answer["choices"][0]["message"]["content"] == "hi"
        for nothing in (run("chat", "qwen", given=""), run("chat", "qwen", "-m", " ")):
            assert nothing.exit_code == 2 and "there is no question" in nothing.stderr and not nothing.stdout


def test_scale_asks_for_replicas_and_refuses_what_the_spec_does_not_allow(controller: Live, run: Run) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    text = 'name: web\nkind: serve\nreplicas: 1..2\nserve: {model: {id: web, source: "hf://a/b"}}\n'
    assert run("apply", "--wait", "-f", write("web.yaml", text)).exit_code == 0
    assert "asked to hold 2" in run("scale", "web", "2").stdout
    refused = run("scale", "web", "9")
    assert refused.exit_code == 3
    assert "2" in refused.stderr


def test_rollback_takes_an_endpoint_back_and_says_where_there_is_nothing_to_go_back_to(
    controller: Live, run: Run
) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    text = 'name: web\nkind: serve\nserve: {model: {id: web, source: "hf://a/b"}}\n'
    assert run("apply", "--wait", "-f", write("web.yaml", text)).exit_code == 0
    refused = run("rollback", "web")
    assert refused.exit_code == 3
    assert "no earlier revision of web has answered: there is none to go back to" in refused.stderr
    assert run("apply", "-f", write("web.yaml", text + "envs: {MODE: fast}\n")).exit_code == 0
    client = controller.client()
    wait_until(lambda: client.status("web").answered == 2)
    assert "2; llmsched rollback web --to 1" in run("status", "web").stdout
    wrong = run("rollback", "web", "--to", "7")
    assert (wrong.exit_code, "Those that did: 1" in wrong.stderr) == (3, True)
    assert "now revision 3" in run("rollback", "web", "--to", "1").stdout
    wait_until(lambda: client.status("web").answered == 3)
    assert "unchanged" in run("apply", "-f", write("web.yaml", text)).stdout
    assert "goes back to revision 1, asked for by" in run("story", "web").stdout


# --- files, tokens, doctor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", "serve", "task"])
def test_a_starter_spec_loads_as_it_stands_and_is_not_overwritten(run: Run, kind: str) -> None:
    from llmsched.spec import load

    assert run("init", kind, "-o", "new.yaml").exit_code == 0
    assert load.load(Path("new.yaml").read_text())[0].kind == kind
    assert run("init", kind, "-o", "new.yaml").exit_code == 3
    assert run("init", kind).stdout == Path("new.yaml").read_text()


@pytest.mark.parametrize("kind", ["train", "serve", "batch", "tune", "task", "cluster"])
def test_every_kind_has_a_schema(run: Run, kind: str) -> None:
    assert "properties" in json.loads(run("schema", kind).stdout)


def test_a_token_is_made_used_listed_and_revoked(controller: Live, run: Run) -> None:
    made = json.loads(run("token", "create", "ann", "--role", "viewer", "--json").stdout)
    with controller.client(made["token"]) as client:
        assert client.health().status == "ready"
    assert "ann" in run("token", "list").stdout
    assert made["token"] not in run("token", "list", "--json").stdout
    assert run("token", "revoke", made["id"]).exit_code == 0
    assert run("token", "revoke", made["id"]).exit_code == 3


def test_doctor_finds_what_is_open_to_others(controller: Live, run: Run) -> None:
    checks = {one["name"]: one["result"] for one in json.loads(run("doctor", "--json").stdout)["checks"]}
    assert (checks["home"], checks["token"], checks["controller"], checks["ray"]) == ("ok", "ok", "ok", "ok")
    (controller.home / "token").chmod(0o644)
    try:
        result = run("doctor")
        assert result.exit_code == 4
        assert f"chmod 600 {controller.home}/token" in result.stdout
    finally:
        (controller.home / "token").chmod(0o600)


def test_a_configuration_is_put_in_force_from_a_file(run: Run) -> None:
    text = "queues:\n  - {name: default}\n  - {name: lab, quota: {A100: {nominal: 4}}}\n"
    assert "in force" in run("config", "-f", write("llmsched.yaml", text)).stdout
    assert "A100 0 of 4" in run("queues").stdout
    assert run("config", "-f", write("wrong.yaml", "queus: []\n")).exit_code == 2


# --- all commands ----------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_imports_none() -> None:
    import subprocess
    import sys

    code = "import sys; from llmsched.cli.main import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ALL:
        assert f"\n  {name} " in shown
    loaded = set(shown.splitlines()[-1].split())
    assert loaded.isdisjoint({"pydantic", "httpx", "rich", "ray", "torch", "fastapi", "yaml"})


def test_a_client_that_sends_no_spec_loads_no_kind_of_spec() -> None:
    import subprocess
    import sys

    code = "import sys, llmsched.client.client; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(shown.split())
    assert {"llmsched.spec.http_models", "llmsched.spec.workload", "llmsched.spec.train"} & loaded == {
        "llmsched.spec.http_models"
    }
    assert loaded.isdisjoint({"rich", "pygments", "httpx._main"}), "what only httpx's own command line needs"


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("token", "secret", "cluster", "models", "node")])
def test_every_command_exists_explains_itself_and_has_json(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    if name != "sim":  # a group, as token is: its commands have it
        assert "--json" in result.stdout
