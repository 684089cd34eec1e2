"""Less of a folder, where time is short: what its expect.yaml says under `short` (`run.py NAME --short`).

    short:
      minutes: 2
      without: [loans, loans-model]                      # documents of its YAML files that are left out
      fields: {tone.train.training_args.max_steps: 6}    # of the others, each by its document's name
      arguments: [cards, owner]                          # what measure.py is told: which parts it measures
      parts: {cards: {at_least: 0.8}, owner: {}}         # those parts, with the bounds that differ
      seen: [{shrank: stress}]                           # of what the whole run shows

It is a copy that is changed and run, of all the examples (without their data), as they use files of one another.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

KEYS = {"minutes", "without", "fields", "arguments", "parts", "seen"}
_BOUNDS = {"at_least", "at_most"}


def expected(whole: dict[str, Any], where: str) -> dict[str, Any]:
    """What stands under `short` over what is expected of the whole. Raises SystemExit for what does not fit to that."""
    short = whole.get("short")
    if not isinstance(short, dict) or not {"minutes", "parts"} <= short.keys():
        raise SystemExit(f"{where}: `short` does not say what a short run is: it wants minutes and parts at least")
    if unknown := sorted(short.keys() - KEYS):
        raise SystemExit(f'{where}: short: unknown key "{unknown[0]}". Known: {", ".join(sorted(KEYS))}.')
    if strange := sorted(short["parts"].keys() - whole["parts"].keys()):
        raise SystemExit(f"{where}: short: no part {strange[0]!r}; there are {', '.join(whole['parts'])}")
    parts = {}
    for name, differ in short["parts"].items():
        bound = _BOUNDS & whole["parts"][name].keys()
        if not isinstance(differ, dict) or differ.keys() - bound:
            raise SystemExit(f"{where}: short: {name}: only {', '.join(bound)} can differ, not {differ!r}")
        parts[name] = whole["parts"][name] | differ
    if strange := [each for each in short.get("seen", []) if each not in whole.get("seen", [])]:
        raise SystemExit(f"{where}: short: seen: {strange[0]!r} is not among what the whole run shows")
    return {**whole, "minutes": short["minutes"], "parts": parts, "seen": short.get("seen", [])}


def copy(folder: Path, into: Path, short: dict[str, Any], where: str) -> Path:
    """The folder's copy below `into`, with what `short` leaves of its YAML files. Raises SystemExit for names of
    documents and fields that are none."""
    place = folder.parent
    ignored = shutil.ignore_patterns("data", "__pycache__", "*.svg")
    shutil.copytree(place.parent, into / place.parent.name, ignore=ignored)
    copied = into / place.parent.name / place.name / folder.name
    without, fields = {*short.get("without", [])}, dict(short.get("fields", {}))
    for file in sorted(copied.glob("*.yaml")):
        documents = [each for each in yaml.safe_load_all(file.read_text()) if isinstance(each, dict) and "kind" in each]
        if not documents:
            continue  # the cluster, and what is expected
        left = [each for each in documents if each["name"] not in without]
        without -= {each["name"] for each in documents}
        for each in left:
            for path in [path for path in fields if path.partition(".")[0] == each["name"]]:
                _set(each, path.split(".")[1:], fields.pop(path), f"{where}: short: fields: {path}")
        file.write_text(yaml.safe_dump_all(left, sort_keys=False))
    if unknown := sorted(without | fields.keys()):
        raise SystemExit(f"{where}: short: no document {unknown[0].partition('.')[0]!r}")
    return copied


def _set(document: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    *ahead, last = path or [""]
    for key in ahead:
        document = document.get(key, {})
    if not isinstance(document, dict) or last not in document:
        raise SystemExit(f"{where}: there is no such field; a short run changes one that is there")
    document[last] = value
