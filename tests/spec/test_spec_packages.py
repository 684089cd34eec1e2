"""`environment.pip`: what may stand there, and how the rest is refused, with its place and without what it may hide."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load

TASK = "name: a\nkind: task\nworkdir: .\nenvironment:\n  pip:\n    - PIP\ntask: {run: [x]}\n"


def refused(requirement: str, text: str = TASK) -> str:
    with pytest.raises(SpecError) as caught:
        load(text.replace("PIP", f"'{requirement}'"), "a.yaml")
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    "requirement",
    [
        "einops",
        "einops>=0.8,<1",
        "httpx[http2]==0.27.*",
        'tomli; python_version < "3.11"',
        "mine @ https://example.org/mine-1.0-py3-none-any.whl",
        "mine @ git+https://example.org/mine.git@v1",
        "wheels/mine-1.0-py3-none-any.whl",
        "raycast",
    ],
)
def test_requirements_and_wheels_of_the_workdir_are_taken(requirement: str) -> None:
    (spec,) = load(TASK.replace("PIP", "'" + requirement + "'"), "a.yaml")
    assert requirement in str(spec)


@pytest.mark.parametrize(
    ("requirement", "why"),
    [
        ("", "may not be empty"),
        ("-r requirements.txt", "options are not taken; where packages come from is set in pip"),
        ("--find-links=https://example.org", "options are not taken"),
        ("einops >> 1", 'expected a requirement, such as "einops>=0.8"'),
        ("einops --hash=sha256:00", "expected a requirement"),
        ("https://example.org/einops.tar.gz", 'or "mine @ https://host/mine.whl"'),
        ("/opt/mine-1.0-py3-none-any.whl", "expected a path inside the workdir"),
        ("../mine-1.0-py3-none-any.whl", "expected a path inside the workdir"),
        ("mine @ file:///opt/mine.whl", "expected an address that begins with https://"),
        ("mine @ http://example.org/mine.whl", "expected an address that begins with https://"),
        ("Ray[serve]==1.0", '"Ray" is the cluster\'s own'),
        ("llmsched", '"llmsched" is the cluster\'s own'),
    ],
)
def test_what_is_refused_is_told_with_its_place(requirement: str, why: str) -> None:
    told = refused(requirement)
    assert told.startswith('a.yaml:6:7: "environment.pip[0]": ') and why in told


@pytest.mark.parametrize("address", ["https://me:hidden-9@example.org/a.whl", "git+https://hidden-9@example.org/a.git"])
def test_credentials_are_refused_and_not_repeated(address: str) -> None:
    told = refused(f"mine @ {address}")
    assert "has credentials in its address; a spec is stored and shown" in told and "hidden-9" not in told


def test_a_wheel_needs_a_workdir_and_the_list_is_bounded() -> None:
    without = TASK.replace("workdir: .\n", "")
    assert "is a file of the workdir, and there is none" in refused("mine-1.0-py3-none-any.whl", without)
    assert "longer than 100" in refused("x", TASK.replace("\n    - PIP", " [" + "x, " * 101 + "]"))
