"""Where one user runs everything, tokens are labels: said by every command that hands one out, and wanted in words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from live import live
from waiting import PATIENCE_S, wait_until

from llmsched.api import home, page, storage_claim
from llmsched.cli import placement
from llmsched.client import Client
from llmsched.errors import NotAllowed, RequestError, SpecError
from llmsched.executors import endpoint_proxy, ray_user
from llmsched.runtime.storage import LocalStorage
from llmsched.spec import http_models

Say = Callable[..., subprocess.CompletedProcess[str]]
as_root = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root, to be somebody else")
ONE = home.Isolation("single-user", "", "only root can start Ray as another user", "/somewhere")
TWO = home.Isolation("two-users", "llmsched-ray", "", "/somewhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return home.prepare(tmp_path / "home")


def test_a_second_persons_token_is_refused_in_single_user_mode_and_nothing_is_kept(folder: Path) -> None:
    home.record_isolation(folder, ONE)
    with pytest.raises(NotAllowed, match="a token for bob would be a label") as refused:
        home.create_token(folder, "bob", "submitter", 90, trusting=False)
    assert (refused.value.exit_code, refused.value.code) == (3, "single_user")
    assert "--trusting" in refused.value.hint
    assert home.made_records(folder) == []


def test_whoever_trusts_the_second_person_says_so_and_the_first_need_not(folder: Path) -> None:
    home.record_isolation(folder, ONE)
    home.create_token(folder, "bob", "submitter", 90, trusting=True)
    home.create_token(folder, home.user_name(), "submitter", 90, trusting=False)
    assert [one.user for one in home.made_records(folder)] == ["bob", home.user_name()]


@pytest.mark.parametrize("days", [float("nan"), float("inf"), 1e300, 0.0, -1.0])
def test_a_token_lasts_a_number_of_days_that_a_calendar_knows(folder: Path, days: float) -> None:
    with pytest.raises(SpecError, match="cannot last"):
        home.create_token(folder, "bob", "submitter", days, trusting=True)
    assert home.made_records(folder) == []


@pytest.mark.parametrize("found", [TWO, home.Isolation()])
def test_where_tokens_are_a_boundary_or_nothing_runs_no_trust_is_asked_for(folder: Path, found: home.Isolation) -> None:
    home.record_isolation(folder, found)
    home.create_token(folder, "bob", "submitter", 90, trusting=False)
    assert home.single_user(folder) == ""


# --- where results lie, which every workload is told ------------------------------------------------------------------


def test_results_lie_beside_the_home_and_never_in_it(folder: Path) -> None:
    place = placement.choose(folder, ray_user.own(), address=None, storage=None)
    assert place.user is None and Path(place.storage).is_dir()
    assert not Path(place.storage).is_relative_to(folder) and f"{folder}/" not in f"{place.storage}/"
    (folder.parent / "link").symlink_to(folder)
    for inside in (folder, folder / "storage", folder.parent / "link" / "deep" / "er", f"file://{folder}/storage"):
        with pytest.raises(RequestError, match="results cannot lie in") as refused:
            placement.choose(folder, ray_user.own(), address=None, storage=str(inside))
        assert "--storage" in refused.value.hint and refused.value.exit_code == 3
    for outside in (f"{folder}-2/storage", "s3://bucket/x"):
        assert placement.choose(folder, ray_user.own(), address=None, storage=outside).storage == outside


def test_a_home_that_is_new_does_not_begin_with_the_results_that_one_of_its_name_left(folder: Path) -> None:
    def place() -> placement.Placement:
        return placement.choose(folder, ray_user.own(), address=None, storage=None)

    storage = LocalStorage(Path(place().storage))
    for number in (1, 2):
        storage_claim.claim(storage, storage_claim.identity(b"of a home that was removed"), is_new=True)
        found = place()
        assert found.aside == f"{storage.root}-before-{number}" and (Path(found.aside) / storage_claim.NOTE).is_file()
        assert list(storage.root.iterdir()) == []
        assert f"lies in {found.aside} now" in "\n".join(placement.notes(folder, found, ()))
    storage_claim.claim(storage, storage_claim.identity(b"ours"), is_new=True)
    home.store_file(folder).touch()
    assert place().aside == "" and storage.exists(storage_claim.NOTE)


def test_a_home_whose_work_was_pretended_gets_a_place_of_its_own_for_real_work(folder: Path) -> None:
    home.record_isolation(folder, home.Isolation(storage=str(folder / "storage")))
    assert placement.choose(folder, ray_user.own(), address=None, storage=None).storage == f"{folder}-storage"
    home.record_isolation(folder, ONE._replace(storage=str(folder / "storage")))  # of an older llmsched
    with pytest.raises(RequestError, match="may be moved|results cannot lie"):
        placement.choose(folder, ray_user.own(), address=None, storage=None)


def test_a_home_that_is_removed_takes_the_results_beside_it_along(folder: Path) -> None:
    place = placement.choose(folder, ray_user.own(), address=None, storage=None)
    placement.forget(folder)
    assert not folder.exists() and not Path(place.storage).exists()


def test_a_cluster_file_cannot_put_results_into_the_home(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    one_user = http_models.IsolationView(mode="single-user", why="one user")
    with live(tmp_path / "home", isolation=one_user) as running, running.client() as client:
        file.write_text(f"storage: {tmp_path}/home/storage")
        with pytest.raises(RequestError, match="results cannot lie in"):
            client.configure(file)
        file.write_text(f"storage: {tmp_path}/elsewhere")
        client.configure(file)


# --- as a running controller tells it --------------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """A controller process, before it has found a Ray: it answers then, too."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*options: str) -> Client:
        folder = home.prepare(tmp_path / "home")
        words = ["--home", str(folder), "--address", "127.0.0.1:1", "--storage", str(tmp_path / "storage"), *options]
        started.append(subprocess.Popen([sys.executable, "-P", "-m", "llmsched.api", *words]))
        wait_until(lambda: home.announced(folder) is not None)
        return Client(home=folder)

    yield begin
    for one in started:
        one.terminate()
        one.wait(PATIENCE_S)
    endpoint_proxy.end(tmp_path / "home")  # which outlives a controller


def test_a_controller_in_single_user_mode_says_so_and_why_to_whoever_asks(
    serve: Callable[..., Client], tmp_path: Path
) -> None:
    with serve("--single-user=only root can start Ray as another user") as client:
        said = client.health().isolation
    assert (said.mode, said.ray_user) == ("single-user", "")
    assert said.why == "only root can start Ray as another user"
    assert "isolation.mode" in page.content().decode()  # shown beside the number of nodes
    with pytest.raises(NotAllowed, match="a label, not a boundary"):
        home.create_token(tmp_path / "home", "bob", "submitter", 90, trusting=False)


@as_root
def test_a_controller_beside_a_ray_of_another_user_says_whom_work_runs_as_and_starts_its_bridge_as_that(
    serve: Callable[..., Client], tmp_path: Path
) -> None:
    assert ray_user.choose(ray_user.DEFAULT).user is not None
    with serve("--ray-user", ray_user.DEFAULT) as client:
        said = client.health().isolation
        assert (said.mode, said.ray_user, said.why) == ("two-users", ray_user.DEFAULT, "")
        note = home.announced(tmp_path / "home")
        assert note is not None
        controller = psutil.Process(note.pid)
        own = ["root", "root", ray_user.DEFAULT]  # the proxies of endpoints, which read tokens, and the bridge
        wait_until(lambda: sorted((one.username() for one in controller.children()), key=own.index) == own)
        (bridge,) = (one for one in controller.children() if one.username() == ray_user.DEFAULT)
        named = [text for text in bridge.environ().values() if str(tmp_path) in text]
        assert (named, Path(bridge.cwd()).is_relative_to(tmp_path)) == ([], False)
    home.create_token(tmp_path / "home", "bob", "submitter", 90, trusting=False)


@as_root
def test_what_a_home_that_is_gone_left_is_put_aside_also_where_results_are_another_user_s(folder: Path) -> None:
    def place() -> placement.Placement:
        return placement.choose(folder, ray_user.DEFAULT, address=None, storage=None)

    found = place()
    assert found.user is not None
    try:
        with ray_user.acting_as(found.user):
            (Path(found.storage) / storage_claim.NOTE).touch()
        assert place().aside == f"{found.storage}-before-1"
        home.store_file(folder).touch()
        assert place().aside == ""
    finally:
        shutil.rmtree(ray_user.folder_of(found.user, folder))


@pytest.mark.parametrize("asked", [pytest.param(ray_user.DEFAULT, marks=as_root), ray_user.own()])
def test_a_start_that_fails_leaves_no_empty_folder_for_results_and_no_full_one_goes(folder: Path, asked: str) -> None:
    found = placement.choose(folder, asked, address=None, storage=None)
    above = ray_user.folder_of(found.user, folder) if found.user else Path(found.storage)
    try:
        (Path(found.storage) / "kept").touch()
        placement.give_up(folder, found)
        (Path(found.storage) / "kept").unlink()
        placement.give_up(folder, found)
        assert not above.exists()
    finally:
        shutil.rmtree(above, ignore_errors=True)


def test_what_up_cannot_put_into_effect_beside_a_controller_that_runs_is_refused(
    serve: Callable[..., Client], tmp_path: Path
) -> None:
    serve("--single-user=one user").close()
    command = [sys.executable, "-P", "-m", "llmsched.cli.main", "up"]
    around = {**os.environ, "LLMSCHED_HOME": str(tmp_path / "home"), "MINE": "x"}
    for words, told in ((["--ray-user", "daemon"], "and not as daemon"), (["--env", "MINE"], "cannot be given MINE")):
        refused = subprocess.run([*command, *words], capture_output=True, text=True, env=around, timeout=PATIENCE_S)
        assert (refused.returncode, told in refused.stderr) == (3, True), refused.stderr


# --- as somebody who is not root ------------------------------------------------------------------------------------


@pytest.fixture
def say(tmp_path: Path) -> Iterator[Say]:
    """A command of Ray's user, who is not root, in a home of that user."""
    user = ray_user.choose(ray_user.DEFAULT).user
    assert user is not None
    place = ray_user.folder_of(user, tmp_path)
    environment = {"LLMSCHED_HOME": str(place), "HOME": str(user.home), "USER": user.name, "PATH": os.environ["PATH"]}
    command = [*ray_user.command(user), sys.executable, "-P", "-m", "llmsched.cli.main"]

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, cwd="/", env=environment, timeout=120)

    yield said
    shutil.rmtree(place, ignore_errors=True)


@as_root
def test_without_root_token_create_wants_trust_before_any_controller_has_run(say: Say) -> None:
    refused = say("token", "create", "bob")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "a token for bob would be a label" in refused.stderr and "--trusting" in refused.stderr
    made = say("token", "create", "bob", "--trusting")
    assert made.returncode == 0 and made.stdout.startswith("llms_")
    assert "keeps nobody from anything" in made.stderr


@as_root
def test_without_root_doctor_says_that_tokens_are_labels_and_how_they_would_be_more(say: Say) -> None:
    checks = {one["name"]: one for one in json.loads(say("doctor", "--json").stdout)["checks"]}
    assert checks["users"]["result"] == "warn" and "tokens" in checks["users"]["detail"]
    assert "sudo llmsched up" in checks["users"]["hint"]


@as_root
def test_without_root_another_user_for_ray_is_refused_before_anything_starts(say: Say) -> None:
    refused = say("up", "--ray-user", "daemon")
    assert refused.returncode == 3
    assert "only root can start Ray as another user" in refused.stderr


@as_root
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--fake-nodes", "1x1", "--ray-user", "daemon"), 2, "--fake-nodes has no Ray"),
        (("--env", "LLMSCHED_HOME"), 2, "LLMSCHED_HOME cannot be handed on"),
        (("--env", "NOT_SET_HERE"), 2, "NOT_SET_HERE is not set here"),
    ],
)
def test_options_that_would_have_no_effect_or_hand_on_what_is_ours_are_refused(
    say: Say, words: tuple[str, ...], code: int, told: str
) -> None:
    refused = say("up", *words)
    assert refused.returncode == code
    assert told in refused.stderr
