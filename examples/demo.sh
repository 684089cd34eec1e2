#!/usr/bin/env bash
# Sets everything up in .venv (the first time), then runs the demo: a fine-tune and two endpoints on pretend GPUs.
#   bash examples/demo.sh [--keep]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash .ci/setup
exec .venv/bin/llmsched demo "$@"
