"""An app that is not in the workdir is said before anything is sent, from its source alone."""

import pytest

from llmsched.client import sources
from llmsched.errors import SpecError
from llmsched.spec.load import load

SOURCE = """
import os as system
from ray import serve
raise SystemExit("nobody runs this")

@serve.deployment
class Desk: ...

try:
    import fast as quick
except ImportError:
    quick = None
if (app := Desk.bind()):
    other, [third] = app, [app]
if __name__ == "__main__":
    serve.run(app)
"""


def check(tmp_path, entry, source=SOURCE, place="desk.py"):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(source)
    (spec,) = load(f'name: desk\nkind: serve\nworkdir: .\nserve: {{app: "{entry}"}}\n')
    sources.check(spec, tmp_path)


@pytest.mark.parametrize("name", ["Desk", "app", "other", "third", "quick", "system"])
def test_what_the_module_binds_is_there(tmp_path, name):
    check(tmp_path, f"desk:{name}")


def test_a_module_elsewhere_and_one_that_cannot_be_overseen_are_left_to_the_cluster(tmp_path):
    check(tmp_path, "installed.elsewhere:app")
    check(tmp_path, "desk:made", "from parts import *\n")
    check(tmp_path, "desk:made", "def __getattr__(name): ...\n")
    check(tmp_path, "desk:made", "def make():\n    global made\n    made = 1\nmake()\n")


@pytest.mark.parametrize(
    ("entry", "source", "said"),
    [
        ("desk:ap", SOURCE, 'desk.py has nothing called "ap". Did you mean "app"?'),
        ("desk:app", "app = (", "desk.py:1 is no Python that can be read"),
        (
            "desk:app",
            f"{SOURCE}\nhandle = serve.run(app, name='other')\n",
            "deploys an application when it is imported",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(tmp_path, entry, source, said):
    with pytest.raises(SpecError) as refused:
        check(tmp_path, entry, source)
    assert said in str(refused.value)


def test_a_module_of_a_package_is_found(tmp_path):
    with pytest.raises(SpecError, match=r"shop.__init__.py has nothing called"):
        check(tmp_path, "shop:nothing", SOURCE, "shop/__init__.py")


def test_a_ready_made_app_and_the_names_of_its_arguments_are_looked_at_without_a_workdir():
    def said(entry, args):
        (spec,) = load(f'name: desk\nkind: serve\nserve: {{app: "{entry}", args: {args}}}\n')
        with pytest.raises(SpecError) as refused:
            sources.check_apps(spec, None)
        return str(refused.value)

    assert 'nothing called "Retriver". Did you mean "Retriever"?' in said("workloads.apps.retriever:Retriver", "{}")
    assert "llmsched has no module workloads.apps.retriver" in said("workloads.apps.retriver:Retriever", "{}")
    typo = said("workloads.apps.retriever:Retriever", "{documnts: [a]}")
    assert '"args" has "documnts", which Retriever does not take. Did you mean "documents"?' in typo


def test_an_argument_that_a_function_for_rows_does_not_take_is_said(tmp_path):
    (tmp_path / "mapper.py").write_text("def upper(rows, field): ...\ndef any(rows, **more): ...\n")

    def check_map(name, args):
        (spec,) = load(
            f'name: b\nkind: batch\nworkdir: .\nbatch: {{input: {{path: /a}}, map: "mapper:{name}", args: {args}}}\n'
        )
        sources.check_apps(spec, tmp_path)

    check_map("upper", "{field: a}")
    check_map("any", "{nope: 1}")
    with pytest.raises(SpecError, match='"args" has "nope", which upper does not take. It takes field.'):
        check_map("upper", "{nope: 1}")

    with pytest.raises(SpecError, match='upper needs "field": write it into "args"'):
        check_map("upper", "{}")


APPS = """
from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve

@serve.deployment(num_replicas=1)
class Desk:
    def __init__(self, /, model, *, top=3, key): ...

@serve.deployment
class Bare:
    async def __call__(self, request): ...

class Loose:
    def __init__(self, *args, **more): ...

class Held(Loose): ...

class Twice:
    def __init__(self): ...
Twice = Loose

@changed
class Other:
    def __init__(self): ...

@serve.deployment
def answer(request): ...

class Args(BaseModel):
    model: str
    top: int = 3
    key: str = Field(alias="k")

def build(args): return Desk.bind(**args)
def typed(args: Args): return Desk.bind(args.model)
def two(model, key): return Desk.bind(model, key=key)
def none(): return app

app = Desk.options(num_replicas=2).bind("m", key=1)
elsewhere = Loose.bind()
web = FastAPI()
chosen = app if web else typed
"""


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("Desk", "{model: m, key: k}", ""),
        ("Desk", "{modle: m, key: k}", 'has "modle", which Desk does not take. Did you mean "model"?'),
        ("Desk", "{top: 1}", 'Desk needs "model", "key": write them into "args".'),
        ("Bare", "{}", ""),
        ("Bare", "{model: m}", '"args" has "model", which Bare does not take. It takes none.'),
        ("Loose", "{model: m}", ""),
        ("Held", "{model: m}", ""),
        ("Twice", "{model: m}", ""),
        ("Other", "{model: m}", ""),
        ("answer", "{}", ""),
        ("answer", "{model: m}", 'answer is a function, which takes no "args".'),
        ("build", "{anything: 1}", ""),
        ("typed", "{model: m}", ""),
        ("typed", "{top: 3}", 'typed needs "model", by its Args: write it into "args".'),
        ("two", "{model: m, key: k}", 'two takes 2 arguments; a builder of an application takes one, which is "args".'),
        ("none", "{}", 'none takes no arguments; a builder of an application takes one, which is "args".'),
        ("app", "{}", ""),
        ("app", "{model: m}", 'app is bound already, so "args" has no effect. Name a builder, or Desk itself.'),
        ("elsewhere", "{model: m}", ""),
        ("web", "{}", ""),
        ("web", "{model: m}", 'web is a web application, which takes no "args".'),
        ("chosen", "{model: m}", ""),
    ],
)
def test_arguments_that_an_app_cannot_take_are_said_and_nothing_where_one_cannot_know(tmp_path, name, args, said):
    (tmp_path / "shop.py").write_text(APPS)
    (spec,) = load(f'name: desk\nkind: serve\nworkdir: .\nserve: {{app: "shop:{name}", args: {args}}}\n')
    if not said:
        sources.check_apps(spec, tmp_path)
        return
    with pytest.raises(SpecError) as refused:
        sources.check_apps(spec, tmp_path)
    assert said in str(refused.value)


def spec_of(what, entry, run='["true"]'):
    """A spec that names code of its own in this field."""
    return {
        "serve.app": f'kind: serve\nserve: {{app: "{entry}"}}\n',
        "batch.map": f'kind: batch\nbatch: {{input: {{path: /a}}, map: "{entry}"}}\n',
        "train.loop": f'kind: train\ntrain: {{loop: "{entry}"}}\n',
        "tune.train.loop": f'kind: tune\ntune: {{train: {{loop: "{entry}"}}, space: {{lr: {{grid: [1]}}}}}}\n',
        "task.run": f"kind: task\ntask: {{run: {run}}}\n",
        "tune.task.run": f"kind: tune\ntune: {{task: {{run: {run}}}, space: {{envs.A: {{grid: [1]}}}}}}\n",
    }[what]


@pytest.mark.parametrize("what", ["serve.app", "batch.map", "train.loop", "tune.train.loop"])
def test_code_is_named_by_its_module_whatever_it_is_for(tmp_path, what):
    (tmp_path / "mine.py").write_text("def f(given): ...\n")

    def said(entry):
        (spec,) = load(f"name: n\nworkdir: .\n{spec_of(what, entry)}")
        return sources.check(spec, tmp_path)

    assert said("mine:f") == []
    with pytest.raises(SpecError, match=rf'{what} mine.py:f: a module is named without ".py": write mine:f'):
        said("mine.py:f")
    with pytest.raises(SpecError, match=rf'{what} mine:ff: mine.py has nothing called "ff". Did you mean "f"'):
        said("mine:ff")
    elsewhere = f"{what} mnie:f: the workdir has no module mnie; it has to be installed on the nodes."
    assert said("mnie:f") == [f'{elsewhere} Did you mean "mine:f"?']


@pytest.mark.parametrize("what", ["task.run", "tune.task.run"])
def test_a_script_that_is_not_in_the_workdir_is_said_before_it_travels(tmp_path, what):
    (tmp_path / "fit.py").touch()

    def said(run):
        (spec,) = load(f"name: n\nworkdir: .\n{spec_of(what, '', run)}")
        return sources.check(spec, tmp_path)

    for run in ('["python", "fit.py"]', '["python3.11", "-m", "fitt"]', '["python", "/there/x.py"]', '["./any"]'):
        assert said(run) == []
    with pytest.raises(SpecError, match=rf'{what}: there is no fitt.py in the workdir. Did you mean "fit.py"'):
        said('["python3.11", "fitt.py"]')


def test_what_a_setup_makes_is_looked_for_by_nobody(tmp_path):
    (spec,) = load(
        'name: n\nkind: task\nworkdir: .\ntask: {run: [bash, made.sh], setup: [bash, -c, "touch made.sh"]}\n'
    )
    assert sources.check(spec, tmp_path) == []
