"""Names of labels: as a data set has them, and the numbers they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsched.data.messages import Unusable
from llmsched.data.rows import BadRows, DataError, Rows

Read = tuple[Mapping[str, Any], Rows, BadRows]  # a data set, its rows, and those that are bad

SHOWN = 20  # labels that a message names


class Labels:
    """The labels come from the training rows, in sorted order, unless the base model has a last layer whose labels
    they are: then its numbers stay, as that layer does."""

    def __init__(self, known: Mapping[str, int], least: int = 2) -> None:
        self.known = known  # the base model's own
        self.least = least
        self.numbers: dict[str, int] = {}  # {} until `number` was called
        self.names: dict[str, str] = {}  # as the data has them -> as `numbers` has them
        self.is_new = False  # the base model's last layer has another meaning

    def __getitem__(self, name: str) -> int:
        return self.numbers[self.names[name]]

    def of_training(self, counts: Mapping[str, int], path: str) -> list[str]:
        """Which label has which number; notes of it. Raises DataError."""
        names = set(counts)
        known = {name.strip().casefold(): name for name in self.known}  # without those that capitals tell apart
        placeholder = {str(number): name for name, number in self.known.items() if name == f"LABEL_{number}"}
        if self.known and len(known) == len(self.known):
            for meaning in (
                {name: known.get(name.casefold()) for name in names},
                {n: placeholder.get(n) for n in names},
            ):
                found = {name: base for name, base in meaning.items() if base is not None}
                if len(found) == len(names) == len(set(found.values())):
                    self.names, self.numbers = found, dict(self.known)
                    renamed = [f"{name} is {base}" for name, base in sorted(found.items()) if name != base]
                    said = f" ({', '.join(renamed[:SHOWN])})" if renamed else ""
                    return [f"{path}: the labels are those of the base model, with its numbers{said}"]
        if len(names) < self.least:
            raise DataError(f"data set {path}: every label is {next(iter(names))!r}; expected at least two")
        self.numbers = numbered(names)
        self.names = {name: name for name in names}
        notes = []
        if folded := [name for name in names if sum(name.casefold() == each.casefold() for each in names) > 1]:
            notes.append(f"{path}: labels that differ in capitals only count as different: {', '.join(sorted(folded))}")
        if self.known:
            self.is_new = True
            notes.append(
                f"{path}: the base model's labels ({', '.join(list(self.known)[:SHOWN])}) are others: "
                "its last layer is made anew"
            )
        return notes

    def of_teacher(self, taught: Mapping[str, int], counts: Mapping[str, int], path: str) -> list[str]:
        """Its labels with its numbers; those of the rows are among them. Notes of it. Raises DataError."""
        base, self.known, self.least = dict(self.known), taught, 0
        notes = self.of_training(counts, path)
        if self.is_new:
            raise DataError(
                f"data set {path}: its labels ({', '.join(sorted(counts)[:SHOWN])}) are not those that the teacher "
                f"tells apart ({', '.join(list(taught)[:SHOWN])})"
            )
        self.is_new = bool(base) and base != taught
        notes = [note.replace("of the base model", "of the teacher") for note in notes]
        new = f"{path}: the base model's labels are others than the teacher's: its last layer is made anew"
        return [*notes, new] if self.is_new else notes

    def take_in(self, counts: Mapping[str, int], path: str, read: Sequence[Read]) -> list[str]:
        """The first are those of training, later ones must be among them. Notes for people. Raises DataError."""
        notes = [] if self.numbers else self.of_training(counts, path)
        self.check(counts, path, read)
        return notes

    def check(self, counts: Mapping[str, int], path: str, read: Sequence[Read]) -> None:
        """Of later rows. Raises DataError for a label that training does not know."""
        if strange := sorted(set(counts) - set(self.names)):
            where = _place_of(strange[0], read)
            raise DataError(
                f"data set {path}: label {strange[0]!r}{where} does not occur in the training data "
                f"(there: {', '.join(list(self.numbers)[:SHOWN])})"
            )

    def settings(self) -> dict[str, Any]:
        """What goes into the model's config; the base's own where no row was read."""
        numbers = self.numbers or dict(self.known)
        names = {number: name for name, number in numbers.items()}
        return {"num_labels": len(numbers), "label2id": numbers, "id2label": names}


def _place_of(label: str, read: Sequence[Read]) -> str:
    """Of the first row that has it: as its label, as that of a word, or of a part."""
    for _, rows, _ in read:
        for row, place in zip(rows, rows.places, strict=True):
            given = row.get("label")
            parts = given if isinstance(given, list) else [given]
            names = {each["label"] if isinstance(each, dict) else each for each in parts}
            if label in names or label[2:] in names and label[:2] in ("B-", "I-"):
                return f" of {place}"
    return ""


def told(counts: Mapping[str, int], path: str) -> str:
    """How often each label stands in a data set, the most frequent ones first."""
    often = sorted(counts.items(), key=lambda each: -each[1])
    many = f" and {len(often) - SHOWN:,} more" if len(often) > SHOWN else ""
    shown = ", ".join(f"{name} {count:,}" for name, count in often[:SHOWN])
    return f"{path}: {len(often)} labels: {shown or 'none'}{many}"


def name_of(label: Any, class_names: Sequence[str] | None) -> str:
    """As a name; a number is one of `class_names` where the file keeps those. Raises Unusable."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, int):
        if class_names is None:
            return str(label)
        if not 0 <= label < len(class_names):
            raise Unusable(
                f"has the label {label}, and the file names {len(class_names)} ({', '.join(class_names[:5])} ...)"
            )
        return class_names[label]
    if isinstance(label, str):
        return label.strip()
    raise Unusable(f"has the label {label!r}; expected a name or a whole number")


def numbered(names: set[str]) -> dict[str, int]:
    """Names to 0..n-1; whole numbers sort as numbers."""
    return {
        name: index
        for index, name in enumerate(sorted(names, key=lambda n: (not n.isdigit(), n.zfill(12) if n.isdigit() else n)))
    }
