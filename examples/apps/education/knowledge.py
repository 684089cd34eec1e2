"""What somebody knows by the exercises that they did: item response theory, two parameters an exercise (Birnbaum 1968).

Knowledge is a number, spread as a bell curve over a class; `slope` and `difficulty` of an exercise say how the chance
to solve it rises with that. `python knowledge.py` fits the one that EXERCISE names, from all answers of its CLASS, as a
task of an array does; the knowledge of each student is then taken from the other exercises.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

GRID = np.linspace(-4, 4, 81)  # of knowledge
BELL = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()

Exercises = Mapping[str, tuple[float, float]]  # name -> slope, difficulty


def chances(slope: float, difficulty: float) -> np.ndarray:
    """[grid]: to solve it, by knowledge."""
    return np.asarray(1 / (1 + np.exp(-slope * (GRID - difficulty))))


def known(exercises: Exercises, answers: Mapping[str, bool]) -> np.ndarray:
    """[grid]: how likely each knowledge is after those answers."""
    found = BELL.copy()
    for name, solved in answers.items():
        each = chances(*exercises[name])
        found *= each if solved else 1 - each
    return np.asarray(found / found.sum())


def fit(answers: np.ndarray, at: int) -> tuple[float, float]:
    """Slope and difficulty of exercise `at`; `answers` [students, exercises], 1 where solved."""
    shares = answers.mean(0)
    plain = {str(other): (1.0, -1.2 * float(np.log(share / (1 - share)))) for other, share in enumerate(shares)}
    kinds, counts = np.unique(answers, axis=0, return_counts=True)
    weights = np.array(
        [known(plain, {str(k): bool(v) for k, v in enumerate(kind) if k != at}) for kind in kinds]
    )  # [kinds, grid]

    def loss(both: np.ndarray) -> float:
        solved = weights @ chances(np.exp(both[0]), both[1])
        said = np.where(kinds[:, at] == 1, solved, 1 - solved)
        return float(-(counts * np.log(said)).sum() + 2 * both[0] ** 2)  # slopes are drawn towards 1

    slope, difficulty = minimize(loss, np.array([0.0, plain[str(at)][1]]), method="Nelder-Mead").x
    return float(np.exp(slope)), float(difficulty)


def main() -> None:
    import pandas

    of, exercise, out = os.environ["CLASS"], os.environ["EXERCISE"], Path(os.environ["OUT"])
    answers = pandas.read_csv(Path(__file__).parent / "data" / f"{of}-train.csv")
    slope, difficulty = fit(answers.to_numpy(), answers.columns.get_loc(exercise))
    file = out / f"{of}-{exercise}.json"
    file.with_suffix(".new").write_text(json.dumps({"slope": slope, "difficulty": difficulty}))
    file.with_suffix(".new").rename(file)
    print(f"{exercise} of {of}: slope {slope:.2f}, difficulty {difficulty:.2f}")


if __name__ == "__main__":
    main()
