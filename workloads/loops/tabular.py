"""A label or a number from the columns of a table: linear, or with hidden layers.

Columns of numbers are brought to one scale, others are one-hot; a number that a row lacks counts as the mean. It
leaves model.safetensors and columns.json, which says how a row becomes its input; `Learnt` is both, ready to be asked.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from llmsched.data.formats import is_missing
from llmsched.data.rows import Row
from llmsched.runtime import artifact, progress
from workloads.loops.learning import layers, learn, numbers_in, rows_of, settings
from workloads.sources import BadInput

KNOWN = {"test": str, "target": str, "hidden": [], "predicts": "label"}
STEPS = 32  # of the way from the usual row
_MOST_VALUES = 100  # of a column that is one-hot


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    if chosen.predicts not in ("label", "number"):
        raise BadInput(f'config.predicts: expected "label" or "number", got {chosen.predicts!r}')
    learnt, tested = rows_of(chosen.data, chosen.target), rows_of(chosen.test, chosen.target)
    columns = Columns.of(learnt, chosen.target)
    inputs, held_out = columns.tensor(learnt), columns.tensor(tested)
    is_label = chosen.predicts == "label"
    labels = sorted({str(row[chosen.target]) for row in learnt}) if is_label else []
    if is_label:
        true, wanted = (_numbered(rows, chosen.target, labels) for rows in (learnt, tested))
        if len(labels) < 2:
            raise BadInput(f"data set {chosen.data}: every {chosen.target!r} is the same")
    else:
        true, wanted = (
            torch.tensor(numbers_in(rows, chosen.target, path))
            for rows, path in ((learnt, chosen.data), (tested, chosen.test))
        )
    middle, spread = (0.0, 1.0) if is_label else (float(true.mean()), float(true.std()) or 1.0)
    torch.manual_seed(chosen.seed)
    model = layers(inputs.shape[1], chosen.hidden, len(labels) or 1)

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        said = model(inputs[rows])
        if is_label:
            return functional.cross_entropy(said, true[rows], reduction="sum")
        return functional.mse_loss(said[:, 0], (true[rows] - middle) / spread, reduction="sum")

    learn(model, len(learnt), loss_of, chosen)
    with torch.no_grad():
        said = model(held_out)

    def write(folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")
        about = {"columns": columns.about, "target": chosen.target, "labels": labels, "mean": middle, "std": spread}
        (folder / "columns.json").write_text(json.dumps({**about, "hidden": chosen.hidden}, indent=1))

    artifact.save(write)
    found = of_labels(said, wanted) if is_label else of_numbers(said[:, 0] * spread + middle, wanted)
    artifact.metrics(**{f"eval.{name}": round(value, 5) for name, value in found.items()})


class Columns:
    """How a row becomes numbers. `about`: {column: {"mean", "std"} or {"values", "shares"}}; a share is of all rows."""

    def __init__(self, about: dict[str, dict[str, Any]]) -> None:
        self.about = about

    @classmethod
    def of(cls, rows: list[Row], target: str) -> Columns:
        """Raises BadInput for a table without a column that tells something."""
        about: dict[str, dict[str, Any]] = {}
        for name in (each for each in rows[0] if each != target):
            given = [row[name] for row in rows if not is_missing(row.get(name))]
            try:
                numbers = torch.tensor([float(value) for value in given], dtype=torch.float64)
                spread = float(numbers.std()) if len(given) > 1 else 0.0
                about[name] = {"mean": float(numbers.mean()), "std": spread or 1.0}
            except (TypeError, ValueError):
                counts = Counter(str(value) for value in given)
                if len(counts) <= _MOST_VALUES:
                    values = sorted(counts)
                    about[name] = {"values": values, "shares": [counts[each] / len(rows) for each in values]}
                else:  # it names a row rather than tells of it
                    progress.report(
                        note=f"the column {name!r} is left out: it has {len(counts):,} values that are no number"
                    )
        if not about:
            raise BadInput(f"the table has no column to learn from beside {target!r}")
        return cls(about)

    @property
    def usual(self) -> torch.Tensor:
        """[inputs]: the mean of all rows that were learnt from."""
        return torch.tensor([each for about in self.about.values() for each in about.get("shares", [0.0])])

    def tensor(self, rows: list[Row]) -> torch.Tensor:
        """[rows, inputs]. Raises BadInput."""
        parts = []
        for name, about in self.about.items():
            if "values" in about:
                given = [None if is_missing(row.get(name)) else str(row[name]) for row in rows]
                parts += [torch.tensor([float(value == each) for each in given]) for value in about["values"]]
                continue
            try:
                numbers = [about["mean"] if is_missing(row.get(name)) else float(row[name]) for row in rows]
            except (TypeError, ValueError, OverflowError) as error:
                raise BadInput(
                    f"the column {name!r} was of numbers where the model learnt, and now: {error}"
                ) from error
            parts.append((torch.tensor(numbers) - about["mean"]) / about["std"])
        return torch.stack(parts, 1)


class Learnt:
    """What the loop has left in `folder`, ready to be asked. `labels` is empty where it foretells a number."""

    def __init__(self, folder: Path) -> None:
        about: dict[str, Any] = json.loads((folder / "columns.json").read_text())
        self.columns, self.target = Columns(about["columns"]), str(about["target"])
        self.labels: list[str] = about["labels"]
        self._mean, self._std = float(about["mean"]), float(about["std"])
        weights = load_file(folder / "model.safetensors")
        self._model = layers(len(self.columns.usual), about["hidden"], len(self.labels) or 1).requires_grad_(False)
        self._model.load_state_dict(weights)

    def says(self, inputs: torch.Tensor) -> torch.Tensor:
        """[rows, labels], before the softmax; or [rows, 1], the number. `inputs`: of `columns.tensor`."""
        said: torch.Tensor = self._model(inputs)
        return said if self.labels else said * self._std + self._mean

    def adds(self, inputs: torch.Tensor, label: int) -> dict[str, float]:
        """What each column of the one row [inputs] adds to the log odds of a label, or to the number, beside the usual
        row; all together are the difference between the two. Integrated gradients (Sundararajan et al. 2017)."""
        usual = self.columns.usual
        steps = (torch.arange(STEPS)[:, None] + 0.5) / STEPS
        points = (usual + (inputs - usual) * steps).requires_grad_()
        with torch.enable_grad():
            said = self.says(points)
            others = [at for at in range(len(self.labels)) if at != label]
            value = said[:, label] - said[:, others].logsumexp(1) if self.labels else said[:, 0]
            (slopes,) = torch.autograd.grad(value.sum(), points)
        parts = ((inputs - usual) * slopes.mean(0)).split(
            [len(a.get("shares", "1")) for a in self.columns.about.values()]
        )
        return {name: float(part.sum()) for name, part in zip(self.columns.about, parts, strict=True)}


def _numbered(rows: list[Row], target: str, labels: list[str]) -> torch.Tensor:
    known = {label: number for number, label in enumerate(labels)}
    if strange := next((row for row in rows if str(row[target]) not in known), None):
        raise BadInput(f"{target!r} {strange[target]!r} does not occur in the rows to learn from")
    return torch.tensor([known[str(row[target])] for row in rows])


def of_labels(said: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """`said` [rows, labels] before the softmax. Of two labels also the area under the ROC curve."""
    found = {"accuracy": float((said.argmax(1) == true).double().mean())}
    found["loss"] = float(functional.cross_entropy(said, true))
    return {**found, "auc": auc(said[:, 1] - said[:, 0], true)} if said.shape[1] == 2 else found


def auc(scores: torch.Tensor, true: torch.Tensor) -> float:
    """How often a true one scores above one that is not; equal ones count half."""
    yes, no = scores[true == 1].double(), scores[true == 0].double().sort().values
    if not len(yes) or not len(no):
        return 0.5
    below = torch.searchsorted(no, yes, side="left") + torch.searchsorted(no, yes, side="right")
    return float(below.double().mean() / (2 * len(no)))


def of_numbers(said: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    off = (said - true).double()
    spread = float(((true - true.mean()).double() ** 2).mean())
    mse = float((off**2).mean())
    return {"mse": mse, "mae": float(off.abs().mean()), "r2": 1 - mse / spread if spread else 0.0}
