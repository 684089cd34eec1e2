#!/usr/bin/env bash
# All checks, in the order in which they fail cheapest: lint (complexity too), types, import contracts, file length and
# dead names, unit tests, then real Ray.
#   bash tests/run.sh          everything (about 20 minutes on 2 cores)
#   bash tests/run.sh quick    without real Ray (about 6 minutes)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash .ci/setup
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false
bin=.venv/bin
began=$SECONDS
step() { printf '\n== %s (%ds)\n' "$1" $((SECONDS - began)); }

step "ruff"
$bin/ruff check .
$bin/ruff format --check .
step "mypy (strict where pyproject.toml says so)"
$bin/mypy llmsched workloads
step "import contracts"
$bin/lint-imports --no-cache
step "file length and dead names"
$bin/python tests/structure.py
step "unit tests"
if [ "${1:-}" = quick ]; then
  exec $bin/pytest -m "not ray" -n 2 --durations=5
fi
$bin/pytest -m "not ray" -n 2 --durations=5
step "real Ray"
$bin/pytest -m ray --durations=10 --timeout=600
step "done"
