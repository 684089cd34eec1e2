#!/usr/bin/env bash
# Fine-tunes and serves on this machine's GPU in bf16, by our own loop and engine, and prints the figures beside its CPU's.
# Needs torch and transformers, no network, no Ray and no model: it makes one of random weights. Under 8 minutes on one
# H100. Exits 1 when something is not as it should be. Without a GPU it runs a smaller model on the CPU, which proves
# nothing about GPUs, and says so.
#
#     bash tests/gpu/prove.sh [FILE]      # FILE: the figures as JSON too
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 480 "$python" tests/gpu/prove.py "$@"
