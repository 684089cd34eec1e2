"""`environment.pip` on one node, with wheels written here: no network is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wheels import write_wheel

from llmsched.runtime import environment, packages, redaction

OFFLINE = {**os.environ, "PIP_NO_INDEX": "1"}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cache"
    folder.mkdir()
    yield folder
    for mark in [mark for mark in packages._held if mark.startswith(str(folder))]:
        os.close(packages._held.pop(mark))


def let_go(found: packages.Packages) -> None:
    """As the end of the process that uses it does."""
    os.close(packages._held.pop(str(found.folder)))


def says(found: packages.Packages, code: str) -> str:
    command = ["python", "-c", code]
    envs = found.surround({"PATH": os.environ["PATH"]})
    return subprocess.run(command, env=envs, capture_output=True, text=True, check=True).stdout.strip()


def test_a_wheel_of_the_workdir_is_there_for_a_process_beside_the_clusters_own_packages(
    tmp_path: Path, cache: Path
) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    said: list[str] = []
    found = packages.build([wheel], tmp_path, OFFLINE, said.append, cache)
    assert says(found, "import greeter, ray; print(greeter.WORD)") == "hello"
    script = subprocess.run(["greeter"], env=found.surround({}), capture_output=True, text=True, check=True)
    assert script.stdout == "hello\n"  # a console script finds its own Python
    assert "".join(said) == f"installing {wheel}\ninstalled\n"
    assert packages.build([wheel], tmp_path, OFFLINE, said.append, cache) == found and len(said) == 2


def test_other_contents_under_one_name_are_another_environment(tmp_path: Path, cache: Path) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    before = packages.build([wheel], tmp_path, OFFLINE, cache=cache)
    write_wheel(tmp_path, "greeter", "1.0", "WORD = 'goodbye'\n")
    after = packages.build([wheel], tmp_path, OFFLINE, cache=cache)
    assert [says(one, "import greeter; print(greeter.WORD)") for one in (before, after)] == ["hello", "goodbye"]


def test_members_that_come_at_once_install_once(tmp_path: Path, cache: Path) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    said: list[str] = []
    with ThreadPoolExecutor(4) as members:
        made = [members.submit(packages.build, [wheel], tmp_path, OFFLINE, said.append, cache) for _ in range(4)]
        assert len({one.result() for one in made}) == 1
    assert said == [f"installing {wheel}\n", "installed\n"]


def test_who_waits_to_build_it_takes_it_when_another_has_and_keeps_it(tmp_path: Path, cache: Path) -> None:
    """Whoever looked just before it was complete once waited to be alone with it for as long as others held it."""
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    found = packages.build([wheel], tmp_path, OFFLINE, cache=cache)  # held by this process from here on
    with pytest.raises(packages._Completed):
        packages._lock(found.folder, packages.fcntl.LOCK_EX, time.monotonic() + 30, unless=lambda: True)


def test_a_half_built_one_is_built_anew(tmp_path: Path, cache: Path) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    found = packages.build([wheel], tmp_path, OFFLINE, cache=cache)
    let_go(found)
    (found.folder / "ready").unlink()  # its builder was killed
    (found.site / "greeter.py").write_text("half a fi")
    packages.build([wheel], tmp_path, OFFLINE, cache=cache)
    assert says(found, "import greeter; print(greeter.WORD)") == "hello"


def test_what_cannot_be_installed_is_named_with_pips_words_and_nothing_stays(tmp_path: Path, cache: Path) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    said: list[str] = []
    with pytest.raises(environment.UserError) as caught:
        packages.build([wheel, "no-such-thing==7"], tmp_path, OFFLINE, said.append, cache)
    told = str(caught.value)
    assert told.startswith("environment.pip: could not install no-such-thing==7: ERROR: ")
    assert "No matching distribution found for no-such-thing==7" in told and "pip config list" in told
    assert "No matching distribution" in "".join(said)
    assert not any(path.is_dir() for path in cache.iterdir())


def test_what_is_the_clusters_own_cannot_be_replaced_by_what_a_package_wants(tmp_path: Path, cache: Path) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n", needs="ray<1")
    with pytest.raises(environment.UserError, match=r"could not install greeter.*depends on ray<1"):
        packages.build([wheel], tmp_path, OFFLINE, cache=cache)


def test_it_may_not_take_for_ever(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "BUILD_WITHIN_S", 0.0)
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    with pytest.raises(environment.UserError, match="could not install greeter-1.0-py3-none-any.whl within 0 s"):
        packages.build([wheel], tmp_path, OFFLINE, cache=cache)


@pytest.mark.parametrize("name", ["missing.whl", "../outside.whl", "link.whl"])
def test_a_wheel_that_is_not_in_the_workdir_is_named(tmp_path: Path, cache: Path, name: str) -> None:
    (tmp_path / "outside.whl").touch()
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    (workdir / "link.whl").symlink_to(tmp_path / "outside.whl")
    with pytest.raises(environment.UserError, match=f"no file {name} in the workdir"):
        packages.build([name], workdir, OFFLINE, cache=cache)


def test_those_that_nobody_uses_go_beyond_a_bound(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "KEPT", 2)
    wheel = write_wheel(tmp_path, "greeter", "0.0", "")
    in_use = packages.build([wheel], tmp_path, OFFLINE, cache=cache).folder
    earlier = [cache / "made-before", cache / "made-after"]  # by processes that have ended
    for used_at, folder in enumerate([in_use, *earlier]):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (used_at, used_at))
    wheel = write_wheel(tmp_path, "greeter", "1.0", "")
    last = packages.build([wheel], tmp_path, OFFLINE, cache=cache).folder
    assert [folder.exists() for folder in (in_use, *earlier, last)] == [True, False, True, True]
    assert len(list(cache.iterdir())) == 5  # three, and a lock for each that is in use


def test_an_order_is_served_from_its_packed_workdir_and_its_secrets_are_not_shown_to_the_installer(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setenv("KEY", "s3cret-value")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/one-workload-only")
    monkeypatch.setenv("MODE", "fast")
    monkeypatch.setattr(packages, "build", lambda wanted, workdir, envs, say: seen.append(dict(envs)))
    spec = {"secrets": ["KEY"], "environment": {"pip": ["einops"]}}
    envs = {"KEY": "s3cret-value", "PIP_INDEX_URL": "https://example.org/one-workload-only", "MODE": "fast"}
    packages.provide({"spec": spec, "envs": envs, "workdir": None}, None)
    assert seen[0]["MODE"] == "fast" and not {"KEY", "PIP_INDEX_URL"} & set(seen[0])
    assert packages.provide({"spec": {"environment": {"pip": []}}, "envs": {}, "workdir": None}, None) is None


def test_a_secret_in_what_pip_says_is_hidden(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_values", ("no-such-s3cret",))
    said: list[str] = []
    with pytest.raises(environment.UserError) as caught:
        packages.build(["no-such-s3cret"], tmp_path, OFFLINE, said.append, cache)
    assert "for ***" in str(caught.value).partition("ERROR")[2] and "s3cret" not in said[-1]


def test_this_process_can_enter_it(tmp_path: Path, cache: Path) -> None:
    wheel = write_wheel(tmp_path, "greeter", "1.0", "WORD = 'hello'\n")
    packages.build([wheel], tmp_path, OFFLINE, cache=cache)
    code = (
        "import sys; from pathlib import Path; from llmsched.runtime import packages\n"
        "packages.build([sys.argv[1]], Path(sys.argv[2]), cache=Path(sys.argv[3])).enter()\n"
        "import greeter, os, shutil; mine = os.environ['VIRTUAL_ENV'] + '/bin/greeter'\n"
        "print(greeter.WORD, shutil.which('greeter') == mine)"
    )
    command = [sys.executable, "-c", code, wheel, str(tmp_path), str(cache)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "hello True\n"


def test_an_index_that_does_not_answer_is_another_matter_than_a_package_that_is_not_there(
    tmp_path: Path, cache: Path
) -> None:
    nobody = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    envs = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")} | nobody
    with pytest.raises(packages.Unreachable, match="could not install greeter-of-nobody"):
        packages.build(["greeter-of-nobody"], None, envs, cache=cache)
