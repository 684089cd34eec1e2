"""A look at what the rows of a training hold: each by itself, and the labels of all where all of them are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmsched.data import contents, files, media
from llmsched.data.labels import Labels, Read, told
from llmsched.data.messages import Unusable
from llmsched.data.rows import BadRows, DataError, Row, Rows
from llmsched.data.tasks import KINDS

FIRST_ROWS = 200
WHOLE_BYTES = 4 << 20  # of files of rows that are read whole


class Base:
    """What the folder of a model on this machine says of it. None: it is elsewhere."""

    def __init__(self, place: Path | None, task: str) -> None:
        self.is_here = place is not None and (place / "config.json").is_file()
        config = _json(place, "config.json")
        heard = _json(place, "preprocessor_config.json").get("sampling_rate")
        self.rate: int | None = heard if type(heard) is int else None
        filters = config.get("conv_kernel"), config.get("conv_stride")
        self.least = 1
        if all(isinstance(each, list) and all(type(one) is int for one in each) for each in filters):
            self.least = media.least_samples(list(zip(config["conv_kernel"], config["conv_stride"], strict=False)))
        head = KINDS[task].auto.removeprefix("AutoModel")
        names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        has_head = any(str(each).endswith(head) for each in config.get("architectures") or ())
        self.labels: dict[str, int] = {}
        with suppress(ValueError, AttributeError):
            self.labels = {str(name): int(number) for number, name in names.items()} if has_head else {}
        self._capitals = bool(_json(place, "tokenizer_config.json").get("do_lower_case"))
        written = [each for each, number in _json(place, "vocab.json").items() if type(number) is int]
        self._alphabet = {each for each in written if len(each) == 1}

    def check_written(self, target: str) -> None:
        """Raises Unusable for a text of which the model writes few letters, by its alphabet; a space has its mark."""
        letters = [each for each in (target.upper() if self._capitals else target) if not each.isspace()]
        if self._alphabet:
            contents.writable(sum(each in self._alphabet for each in letters), len(letters), self._alphabet)


def limit_of(place: Path, split: str | None) -> int | None:
    """How many rows of each file are looked at; None: all, as there are few."""
    with suppress(DataError, OSError):
        found = files.find(place, split)
        size = sum(file.path.stat().st_size * (1 if file.compression is None else 8) for file in found)
        return None if size <= WHOLE_BYTES else FIRST_ROWS
    return FIRST_ROWS


def check(rows: Rows, module: str, base: Base, folder: Path, bad: BadRows) -> Rows:
    """Those of {role: value} that can be learnt, as they are learnt; the others go to `bad`. Images and sounds are
    looked at in the first rows. `folder`: of the data set."""
    good = Rows()
    good.class_names = rows.class_names
    for number, (row, where) in enumerate(zip(rows, rows.places, strict=True)):
        beside = media.beside(folder, where.file)
        try:
            if number < FIRST_ROWS:
                check_media(row, beside, base)
            made = contents.checked(module, row, rows.class_names)
            if number < FIRST_ROWS and module in ("pixels", "own_loss"):
                contents.inside(made["label"], media.size_of(media.of_row(row["image"], beside, "image")))
            if module == "ctc":
                base.check_written(made["target"])
            good.add(made, where)
        except Unusable as error:
            bad.add(where, str(error))
    return good


def check_media(row: Row, folder: Path, base: Base) -> None:
    """Of {role: value}, whose paths begin at `folder`. Raises Unusable for what nobody could see or hear."""
    for role in media.ROLES & row.keys():
        if wrong := media.flaw(media.of_row(row[role], folder, role), role, base.rate, base.least):
            raise Unusable(wrong)


def check_labels(module: str, learnt: Sequence[Read], others: Sequence[Read], base: Base) -> list[str]:
    """Of all rows of a training: those that are learnt, and those that are evaluated. What the run will note. Raises
    DataError as the run does: for a label that only the others have, and for one label in all."""
    counts = contents.classes(module, (row for _, rows, _ in learnt for row in rows))
    if not counts:
        return []
    path = learnt[0][0]["path"]
    least = 1 if module == "own_loss" else 2
    labels = Labels(base.labels, least if base.is_here else 0)  # a base that is elsewhere may know more than these
    notes = labels.of_training(counts, path)
    for read in others:
        labels.check(contents.classes(module, read[1]) or {}, read[0]["path"], [read])
    return [*notes, told(counts, path)] if module == "one_label" else notes


def _json(place: Path | None, name: str) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        said = json.loads((place / name).read_text()) if place else None
        return said if isinstance(said, dict) else {}
    return {}
