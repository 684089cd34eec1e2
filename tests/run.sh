#!/usr/bin/env bash
# All checks, in the order in which they fail cheapest: lint (complexity too), types beside import contracts, file length
# and dead names, then tests, those on real Ray beside the others.
#   bash tests/run.sh          everything (about 27 minutes on 2 cores)
#   bash tests/run.sh quick    without real Ray (about 6 minutes)
#   bash tests/run.sh static   what comes before the tests; `tests`: what comes after it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash .ci/setup
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false
bin=.venv/bin
began=$SECONDS
step() { printf '\n== %s (%ds)\n' "$1" $((SECONDS - began)); }

if [ "${1:-}" != tests ]; then
  step "ruff"
  $bin/ruff check .
  $bin/ruff format --check .
  step "mypy (strict where pyproject.toml says so), beside import contracts, file length and dead names"
  $bin/mypy llmsched workloads &
  if ! { $bin/lint-imports --no-cache && $bin/python tests/structure.py; }; then
    wait
    exit 1
  fi
  $bin/python -m compileall -q llmsched workloads  # or each of the many processes that tests start compiles them anew
  # Leaves the tests as pytest rewrites them. Each worker collects all of them, and rewriting takes half of that.
  if ! PYTHONDONTWRITEBYTECODE='' $bin/pytest --collect-only -q >.venv/collected; then
    tail -50 .venv/collected
    wait
    exit 1
  fi
  wait $!
fi
if [ "${1:-}" = static ]; then
  exit
fi
step "tests"
if [ "${1:-}" = quick ]; then
  exec $bin/pytest -m "not ray" -n 2 --durations=5
fi
# Real Ray waits and computes by turns, so two of them and one line of other tests keep two cores busy.
$bin/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=15
step "done"
