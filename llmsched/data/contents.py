"""What the rows of a task hold: labels, tags and entities, answers in a passage, regions of an image, numbers.

A fine-tuning checks every row by these before its first step, `plan` the first rows before anything is taken. A check
is named by the module of workloads/tasks/learns/ whose rows it is of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmsched.data.labels import name_of
from llmsched.data.messages import Unusable, plain_text
from llmsched.data.rows import Row

OUTSIDE = "O"  # of words that are of no entity
BACKGROUND = "background"  # of pixels that are of nothing
_TEXTS = ("text", "text_pair", "target")
_OVER = 1.0  # pixels by which a box may leave its image: who rounds up does


def checked(module: str, row: Row, class_names: Mapping[str, Sequence[str]]) -> Row:
    """{role: value} as it is learnt, all that is no image or audio. Raises Unusable."""
    check = _CHECKS.get(module)
    if check is None:
        return {role: plain_text(value, role) for role, value in row.items() if role in _TEXTS and value is not None}
    return check(row, class_names.get("label"))


def classes(module: str, rows: Iterable[Row]) -> Counter[str] | None:
    """How often each label stands in rows as `checked` gives them; None: nothing there has labels."""
    if module == "one_label":
        return Counter(row["label"] for row in rows if "label" in row)
    if module == "label_each":
        return _tags(rows)
    if module in ("pixels", "own_loss"):
        found = Counter({BACKGROUND: 1} if module == "pixels" else {})
        found.update(region["label"] for row in rows for region in row["label"])
        return found
    return None


def inside(regions: Sequence[Mapping[str, Any]], size: tuple[int, int] | None) -> None:
    """`size`: width and height of the image; None: not known. Raises Unusable for a box that it does not hold."""
    if size is None:
        return
    wide, high = size
    for each in regions:
        if each["box"][2] > wide + _OVER or each["box"][3] > high + _OVER:
            raise Unusable(
                f"has the box {each['box']!r} of {each['label']!r}, which leaves its image of {wide} x {high}; "
                "expected [left, top, right, bottom] in pixels of the image as it is"
            )


def regions_of(given: Any) -> list[dict[str, Any]]:
    """[{"label", "box": [left, top, right, bottom]}], in pixels. Raises Unusable."""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise Unusable('has regions that are no list of {"label", "box": [left, top, right, bottom]}')
    for each in given:
        if "box" not in each and "bbox" in each:
            raise Unusable(
                'has a region with "bbox", which others mean as [x, y, width, height]; expected "box": [left, top, '
                "right, bottom], which is [x, y, x + width, y + height]"
            )
        label, box = each.get("label"), each.get("box")
        is_box = isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)
        if not isinstance(label, str) or not is_box or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise Unusable(f"has the region {each!r}; expected a label and a box [left, top, right, bottom]")
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            raise Unusable(
                f"has the box {box!r} of {label!r}, which is less than a pixel; expected pixels of the image as it is, "
                "not shares of it"
            )
    return [{"label": each["label"].strip(), "box": each["box"]} for each in given]


def entities_of(given: Any, text: str) -> list[dict[str, Any]]:
    """[{"start", "end", "label"}], in order. Raises Unusable."""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise Unusable('has entities that are no list of {"start", "end", "label"}')
    found: list[dict[str, Any]] = []
    for each in given:
        start, end, label = each.get("start"), each.get("end"), each.get("label", each.get("type"))
        if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text) and isinstance(label, str)):
            raise Unusable(f"has the entity {each!r}; expected start, end (characters of the text) and a label")
        found.append({"start": start, "end": end, "label": label.strip()})
    found.sort(key=lambda each: each["start"])
    for one, other in zip(found, found[1:], strict=False):
        if other["start"] < one["end"]:
            raise Unusable(
                f"has the entities {one!r} and {other!r}, which overlap: a word has one label; keep one of them"
            )
    return found


def answers_in(passage: str, given: Any) -> list[tuple[str, int]]:
    """(answer, first character) of each; [] where there is none. Raises Unusable."""
    if isinstance(given, dict):
        texts, starts = given.get("text", []), given.get("answer_start", [])
        texts, starts = ([each] if not isinstance(each, list) else each for each in (texts, starts))
        starts = starts or [passage.find(str(text)) for text in texts]
    else:
        texts = [plain_text(each, "label") for each in (given if isinstance(given, list) else [given])]
        starts = [passage.find(text) for text in texts]
    for text, start in zip(texts, starts, strict=False):
        if type(start) is not int or start < 0 or passage[start : start + len(text)] != text:
            raise Unusable(f"has the answer {text[:40]!r}, which does not stand in the passage there")
    return list(zip(texts, starts, strict=False))


def number_of(value: Any) -> float:
    """A label that is a number. Raises Unusable."""
    try:
        number = float("x" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        raise Unusable(f"has the label {value!r}; expected a number") from None
    if abs(number) > 1e30 or number != number:
        raise Unusable(f"has the label {value!r}; expected a number of a size that can be learnt")
    return number


def writable(written: int, letters: int, alphabet: Iterable[str]) -> None:
    """Of the letters of what is said, those that a model writes. Raises Unusable where it is fewer than half."""
    if 2 * written < letters:
        shown = "".join(sorted(each for each in alphabet if len(each) == 1))[:100]
        raise Unusable(
            f"has a target of which the model writes {written} of {letters} letters; it writes {shown}. Write the "
            "targets in these, such as in capitals"
        )


def _one_label(row: Row, names: Sequence[str] | None) -> Row:
    """One that a teacher alone labels has none."""
    made = checked("", row, {})
    return made if row.get("label") is None else {**made, "label": name_of(row["label"], names)}


def _one_number(row: Row, names: Sequence[str] | None) -> Row:
    return {**checked("", row, {}), "label": number_of(row["label"])}


def _label_each(row: Row, names: Sequence[str] | None) -> Row:
    text, labels = row["text"], row["label"]
    if isinstance(text, str):
        return {"text": plain_text(text, "text"), "label": entities_of(labels, text)}
    if not isinstance(text, list) or not isinstance(labels, list) or len(text) != len(labels):
        raise Unusable("has words and tags that are not two lists of one length")
    return {"text": [plain_text(word, "text") for word in text], "label": [name_of(tag, names) for tag in labels]}


def _span(row: Row, names: Sequence[str] | None) -> Row:
    made = checked("", row, {})
    return {**made, "label": answers_in(made["text_pair"], row["label"])}


def _regions(row: Row, names: Sequence[str] | None) -> Row:
    return {"label": regions_of(row["label"])}


_CHECKS: dict[str, Callable[[Row, Sequence[str] | None], Row]] = {
    "one_label": _one_label,
    "one_number": _one_number,
    "label_each": _label_each,
    "span": _span,
    "pixels": _regions,
    "own_loss": _regions,
}


def _tags(rows: Iterable[Row]) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in rows:
        if isinstance(row["text"], str):
            found[OUTSIDE] += 1
            found.update(f"{mark}-{each['label']}" for each in row["label"] for mark in "BI")
        else:
            found.update(row["label"])
    return found
