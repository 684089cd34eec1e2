"""What the documents tell people to type, write and open is there, and the map of the house shows the house."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from llmsched.cli.main import cli
from llmsched.core.lifecycle import TABLE
from llmsched.core.status import Status
from llmsched.spec import cluster
from llmsched.spec.load import load

ROOT = Path(__file__).resolve().parents[2]
MAP = ROOT / "llmsched" / "ARCHITECTURE.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
SECURITY = ROOT / ".github" / "SECURITY.md"
INSIDE = ("SKILL.md", "api/README.md", "client/README.md", "gateway/README.md", "sim/RESULTS.md")
PAGES = [ROOT / "README.md", *(ROOT / "llmsched" / name for name in INSIDE), *sorted(ROOT.glob("examples/*/README.md"))]
YAML_FILES = sorted(ROOT.glob("examples/*/*.yaml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text()) if language in languages]


def commands() -> Iterator[tuple[str, bool]]:
    """(what stands after "llmsched", whether it is complete). Comments of cluster/ count: people type those too."""
    for page in [*PAGES, MAP, CONTRIBUTING, SECURITY, *sorted((ROOT / "cluster").glob("*.yaml")), *YAML_FILES]:
        text = page.read_text()
        if page.suffix == ".yaml":
            lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   ")]
        else:
            lines = [line.strip() for block in blocks(page, "bash") for line in block.splitlines()]
            lines += [line for block in blocks(page, "") for line in block.splitlines() if line.startswith("llmsched ")]
        for line in lines:
            typed = re.match(r"(?:[A-Z_]+=\S+ )*llmsched( [^#]*)?(#.*)?$", line)
            if typed:
                yield (typed[1] or "").rstrip(), True
        if page.suffix == ".md":
            yield from ((found, False) for found in re.findall(r"`llmsched( [^`]*)`", text))


COMMANDS = sorted(set(commands()))


@pytest.mark.parametrize(("typed", "is_complete"), COMMANDS)
def test_every_command_in_the_documents_can_be_typed(typed: str, is_complete: bool) -> None:
    words = shlex.split(typed)
    group: click.Command = cli
    context = click.Context(cli)
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(context, words[0])
        assert found is not None, f"llmsched{typed}: no command {words[0]!r}"
        group, words = found, words[1:]
    if isinstance(group, click.Group):
        assert set(words) <= {option for each in group.params for option in each.opts} | {"--help"}
        return
    try:
        group.make_context("llmsched", list(words))
    except click.MissingParameter:
        assert not is_complete, f"llmsched{typed}: something is missing"
    except click.exceptions.Exit:
        assert "--help" in words


def test_the_documents_do_tell_people_what_to_type() -> None:
    complete = {typed.split()[0] for typed, is_complete in COMMANDS if is_complete and typed.split()}
    assert {"init", "up", "down", "plan", "apply", "status", "why", "chat"} <= complete


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_yaml_in_a_page_is_what_llmsched_accepts(page: Path) -> None:
    for text in blocks(page, "yaml"):
        accepts(text, page.name)


@pytest.mark.parametrize("file", YAML_FILES, ids=name_of)
def test_every_example_file_loads(file: Path) -> None:
    accepts(file.read_text(), file.name)


def accepts(text: str, name: str) -> None:
    """A spec where something has a kind, a cluster file otherwise."""
    if re.search(r"^kind:", text, re.M):
        assert load(text, name)
    else:
        assert cluster.load(text, name).queues


@pytest.mark.parametrize("page", [*PAGES, MAP, CONTRIBUTING, SECURITY], ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_example_with_a_readme_is_found_from_the_first_page() -> None:
    text = (ROOT / "README.md").read_text()
    for page in ROOT.glob("examples/*/README.md"):
        assert page.parent.name in text


def test_the_diagram_of_a_gangs_life_is_the_table_of_the_core() -> None:
    section = MAP.read_text().split("## 4.")[1].split("## 5.")[0]
    drawn = {}
    for line in section.splitlines():
        starts = re.match(r"((?:[A-Z]+ )+) *─", line)
        for before in starts[1].split() if starts else []:
            for event, after in re.findall(r"─(\w+)─► ([A-Z]+)", line):
                assert (Status[before], event) not in drawn, f"{before} {event} is drawn twice"
                drawn[Status[before], event] = Status[after]
    assert drawn == {met: row.to for met, row in TABLE.items()}


def test_every_file_on_the_map_exists_and_every_room_is_on_it() -> None:
    plan = blocks(MAP, "")[1]
    room = ROOT
    named = set()
    for line in plan.splitlines():
        depth = len(line) - len(line.lstrip())
        heading = re.match(r" *(?:[a-z]+/)+", line)
        if heading and depth <= 2:
            room = ROOT / heading[0].strip() if depth == 0 else ROOT / "llmsched" / heading[0].strip()
            assert room.is_dir(), room
            named.add(room)
        for file in re.findall(r"\b[a-z_-]+\.(?:py|yaml)\b", line):
            where = [room / file, ROOT / "llmsched" / file]
            assert any(each.exists() for each in where), f"{file} is not in {room.name}"
    rooms = {each.parent for each in (ROOT / "llmsched").glob("*/__init__.py")}
    assert rooms <= named | {ROOT / "llmsched" / "runtime"}


def test_every_module_is_on_the_map() -> None:
    plan = blocks(MAP, "")[1]
    told_by_folder = ("policies", "cli", "traces")
    modules = [
        each
        for each in (ROOT / "llmsched").rglob("*.py")
        if each.stem != "__init__" and not set(told_by_folder) & set(each.parts)
    ]
    missing = [name_of(each) for each in modules if not re.search(rf"\b{each.stem}\b", plan)]
    assert not missing, f"add to section 2 of {name_of(MAP)}, a word is enough: {missing}"


def test_every_file_that_a_checklist_names_exists() -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|toml))`", CONTRIBUTING.read_text())
    assert len(named) > 50
    assert [name for name in named if not (ROOT / name).exists()] == []
