"""Runs applications of this folder, each on a fresh cluster of pretended GPUs, and prints what came out.

    python run.py customer_service      one; `all`: every application
    python run.py finance --short       less of it, in a minute or two: what is left out, its expect.yaml says
    python run.py all --json            a list of {application, metric, number, baseline, minutes, seen, passed ...}

What a folder has, and what its expect.yaml says: ../running.py; what the scheduler may be seen to do: ../seen.py. Exit
code 1: one came out worse than expected, took longer, failed, or the scheduler did not do what it was to show.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from running import Runner, begin  # noqa: E402  # beside, not installed

if __name__ == "__main__":
    begin(Runner(HERE, "application"))
