"""The next exercise by what somebody knows, as an app: of each class, by what its array has fitted.

`{"class": "six", "answers": [{"Q1": true, "Q4": false}, ...]}`, a student each -> `{"students": [{"knows", "sure",
"chances": {exercise: of those not done}, "next"}, ...]}`. The next is the one whose answer tells most (Fisher).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from knowledge import GRID, Exercises, chances, known
from starlette.exceptions import HTTPException

AT_ONCE = 1000  # students


class Tutor:
    """`fitted`: the folder of CLASS-EXERCISE.json, as knowledge.py writes them."""

    def __init__(self, fitted: str) -> None:
        self._folder = Path(fitted)

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        of, students = body.get("class"), body.get("answers")
        if not isinstance(of, str) or not of.isalnum() or not isinstance(students, list) or len(students) > AT_ONCE:
            raise HTTPException(
                422, f'expected {{"class", "answers": [{{EXERCISE: true or false}}]}}, up to {AT_ONCE:,}'
            )
        exercises = self._exercises(of)
        return {"students": [_of_one(exercises, each) for each in students]}

    def _exercises(self, of: str) -> Exercises:
        found = {}
        for file in sorted(self._folder.glob(f"{of}-*.json")):
            about = json.loads(file.read_text())
            found[file.stem.partition("-")[2]] = (about["slope"], about["difficulty"])
        if not found:
            raise HTTPException(503, f"no exercise of class {of!r} is fitted yet: its array has not run")
        return found


def _of_one(exercises: Exercises, answers: Any) -> dict[str, Any]:
    if not isinstance(answers, dict) or not all(isinstance(solved, bool) for solved in answers.values()):
        raise HTTPException(422, "what a student did is {EXERCISE: true or false}")
    if (strange := next((name for name in answers if name not in exercises), None)) is not None:
        raise HTTPException(422, f"there is no exercise {str(strange)[:50]!r}; there are {', '.join(exercises)}")
    knows = known(exercises, answers)
    left = {name: chances(*about) for name, about in exercises.items() if name not in answers}
    tells = {name: exercises[name][0] ** 2 * float(knows @ (each * (1 - each))) for name, each in left.items()}
    mean = float(knows @ GRID)
    return {
        "knows": round(mean, 3),
        "sure": round(float(knows @ (GRID - mean) ** 2) ** 0.5, 3),
        "chances": {name: round(float(knows @ each), 4) for name, each in left.items()},
        "next": max(tells, key=lambda name: tells[name]) if tells else None,
    }
