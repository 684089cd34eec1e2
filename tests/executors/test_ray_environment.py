"""What of an operator's shell reaches Ray's processes, and so every workload: what is on the list, and nothing else."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.errors import SpecError
from llmsched.executors import ray_environment
from llmsched.executors.ray_user import RayUser

SHELL = {"PATH": "/usr/bin", "HOME": "/home/ann", "LANG": "C.UTF-8", "LC_TIME": "de_DE", "HF_HUB_OFFLINE": "1"}
SECRETS = (
    *("LLMSCHED_HOME", "LLMSCHED_TOKEN", "LLMSCHED_ADDRESS", "LLMSCHED_SECRET_KEY_FILE", "RAY_AUTH_TOKEN"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "NVIDIA_API_KEY"),
    *("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "SSH_AUTH_SOCK", "GITHUB_TOKEN", "DATABASE_URL", "PYTHONPATH"),
)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,30}", fullmatch=True), st.just("canary")))
def test_a_variable_that_nobody_thought_of_stays_behind(others):
    unknown = {name for name in others if name not in ray_environment.NAMES}
    unknown = {name for name in unknown if not name.startswith(ray_environment.PREFIXES)}
    assert not unknown & ray_environment.build({**SHELL, **others}).variables.keys()


@pytest.mark.parametrize("name", SECRETS)
def test_what_is_known_to_be_the_operators_own_stays_behind(name):
    assert ray_environment.build({**SHELL, name: "canary"}).variables == SHELL


def test_the_operator_adds_a_variable_by_its_name():
    given = {**SHELL, "MY_PROXY": "http://here", "MY_KEY": "canary"}
    assert ray_environment.build(given, also=["MY_PROXY"]).variables == {**SHELL, "MY_PROXY": "http://here"}


@pytest.mark.parametrize("name", ["LLMSCHED_HOME", "LLMSCHED_TOKEN", "RAY_AUTH_TOKEN"])
def test_what_llmsched_sets_cannot_be_added(name):
    with pytest.raises(SpecError, match=f"{name} cannot be handed on"):
        ray_environment.build({**SHELL, name: "x"}, also=[name])


def test_a_variable_that_is_not_set_cannot_be_added():
    with pytest.raises(SpecError, match="MY_PROXY is not set here"):
        ray_environment.build(SHELL, also=["MY_PROXY"])


def test_another_user_gets_a_home_of_its_own_and_no_path_that_it_cannot_reach(tmp_path):
    tmp_path.chmod(0o700)
    ray = RayUser("ray", 4242, 4242, (4242,), tmp_path / "ray")
    given = {**SHELL, "SHELL": "/bin/zsh", "HF_HOME": str(tmp_path), "SSL_CERT_DIR": "/etc", "TORCH_HOME": "/nowhere/x"}
    built = ray_environment.build(given, ray)
    about = {name: built.variables.get(name) for name in ("HOME", "USER", "LOGNAME", "SHELL", "SSL_CERT_DIR")}
    assert about == {"HOME": str(ray.home), "USER": "ray", "LOGNAME": "ray", "SHELL": None, "SSL_CERT_DIR": "/etc"}
    assert built.left_out == ("HF_HOME", "TORCH_HOME")
    assert not {"HF_HOME", "TORCH_HOME"} & built.variables.keys()


def test_a_cache_that_another_user_cannot_reach_becomes_its_own(tmp_path):
    tmp_path.chmod(0o700)
    ray = RayUser("ray", 4242, 4242, (4242,), tmp_path / "ray")
    built = ray_environment.build({**SHELL, "LLMSCHED_CACHE": str(tmp_path / "cache")}, ray)
    assert built.variables["LLMSCHED_CACHE"] == str(ray.home / ".cache" / "llmsched")
    assert built.left_out == ()


def test_only_the_bridge_learns_how_to_reach_a_ray_of_somebody_else():
    given = {**os.environ, "RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "token", "RAY_REDIS_PASSWORD": "p"}
    assert ray_environment.connection(given) == {"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "token"}
