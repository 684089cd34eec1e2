"""Runs rows of this folder, each on a fresh cluster of pretended GPUs, and prints what came out.

    python run.py see find        these two; `all`: every row
    python run.py all --json      a list of {row, metric, number, at_least, baseline, baseline_is, minutes, passed ...}

What a row is, and what its expect.yaml says: ../running.py. Exit code 1: a row came out below, took longer, or failed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from running import Runner, begin  # noqa: E402  # beside, not installed

if __name__ == "__main__":
    begin(Runner(HERE, "row"))
