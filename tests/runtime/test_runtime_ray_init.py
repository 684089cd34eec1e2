"""`ray.init` in programs of a gang, each a Python of its own with a `ray` of the test. Ray's own words come last."""

import ast
import inspect
import os
import subprocess
import sys

import pytest

from llmsched.runtime import ray_init

RAY = """
def init(address=None, *, num_cpus=None, num_gpus=None, namespace=None, runtime_env=None):
    print("joins", address, num_cpus, num_gpus, namespace, runtime_env)
"""


@pytest.fixture
def said(tmp_path):
    """What a program says, and what is said to it, with `ray` as above."""
    (tmp_path / "ray.py").write_text(RAY)

    def run(program, **envs):
        plain = {name: text for name, text in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
        given = ray_init.in_programs({**plain, **envs})
        done = subprocess.run(
            [sys.executable, "-c", program], env=given, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout.splitlines(), done.stderr.strip()

    return run


def test_a_program_that_says_how_large_its_ray_is_joins_the_gangs_and_reads_that_this_has_no_effect(said):
    """It ran by hand, and here Ray refused it: "num_cpus and num_gpus must not be provided"."""
    program = "import ray; ray.init(num_cpus=2, num_gpus=1, namespace='mine'); ray.init('local', num_cpus=4)"
    out, err = said(program, RAY_ADDRESS="10.0.0.1:1")
    assert out == ["joins None None None mine None", "joins None None None None None"]
    why = "has no effect: this Ray has what resources of the spec give its gang"
    assert err.splitlines() == [
        f"[llmsched] ray.init: num_cpus=2, num_gpus=1 {why}",
        f'[llmsched] ray.init: address="local", num_cpus=4 {why}',
    ]


def test_what_is_as_ray_has_it_is_passed_on_and_nothing_is_said(said):
    program = "from ray import init; init('1.2.3.4:5', num_cpus=2); init(runtime_env={'a': 1}); init(address='auto')"
    expected = [
        "joins 1.2.3.4:5 2 None None None",
        "joins None None None None {'a': 1}",
        "joins auto None None None None",
    ]
    assert said(program, RAY_ADDRESS="10.0.0.1:1") == (expected, "")
    assert said("import ray; ray.init('local', num_cpus=2)") == (["joins local 2 None None None"], "")


def test_a_sitecustomize_of_the_users_own_comes_too_and_a_program_without_ray_pays_nothing(said, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    program = (
        "import sys; print([one for one in sys.modules if 'llmsched.runtime' in one], 'in_programs' in str(sys.path))"
    )
    assert said(program, RAY_ADDRESS="10.0.0.1:1", PYTHONPATH=str(tmp_path)) == (["mine", "[] False"], "")


def test_a_python_without_llmsched_runs_as_before(said, tmp_path):
    program = "import sys; sys.modules['llmsched'] = None; import ray; ray.init(num_cpus=2)"
    assert said(program, RAY_ADDRESS="10.0.0.1:1") == (["joins None 2 None None None"], "")


def test_what_is_left_out_is_what_ray_refuses_where_it_joins():
    import ray

    refusing = [
        one
        for one in ast.walk(ast.parse(inspect.getsource(inspect.unwrap(ray.init))))
        if isinstance(one, ast.If) and any(isinstance(each, ast.Raise) for each in one.body)
        and "When connecting to an existing cluster" in ast.unparse(one.body[0])
    ]  # fmt: skip
    named = {each.id for one in refusing for each in ast.walk(one.test) if isinstance(each, ast.Name)} - {"len"}
    assert named == set(ray_init.OF_A_NEW_RAY)
