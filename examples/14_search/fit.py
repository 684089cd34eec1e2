"""Fits a curve with a small network, in plain numpy. LR and WIDTH come from the spec; by hand: LR=0.1 python fit.py"""

import json
import os
import time

import numpy as np

from llmsched.runtime import artifact, current, progress
from llmsched.runtime.context import NoContext

STEPS, ROWS = 81, 256
rate, width = float(os.environ.get("LR", 0.1)), int(os.environ.get("WIDTH", 16))

chance = np.random.default_rng(7)
x = chance.uniform(-3, 3, (ROWS, 1))
y = np.sin(2 * x) + 0.05 * chance.normal(size=(ROWS, 1))
hidden, bias, out = chance.normal(size=(1, width)), np.zeros(width), chance.normal(size=(width, 1)) / width
loss = float("nan")
for step in range(1, STEPS + 1):
    for _ in range(20):
        inside = np.tanh(x @ hidden + bias)
        wrong = inside @ out - y
        back = (wrong @ out.T) * (1 - inside**2)
        out -= rate * inside.T @ wrong / ROWS
        hidden -= rate * x.T @ back / ROWS
        bias -= rate * back.mean(0)
    loss = float((wrong**2).mean()) if np.isfinite(wrong).all() else 1e9
    progress.report(step=step, total_steps=STEPS, loss=loss)
    time.sleep(float(os.environ.get("PAUSE", 0.1)))  # as a training that takes its time

print(f"lr {rate:.4g}, width {width}: loss {loss:.4f}")
try:
    current()
except NoContext:
    raise SystemExit(0) from None
artifact.metrics(loss=loss)
artifact.save(lambda folder: (folder / "curve.json").write_text(json.dumps({"lr": rate, "width": width})))
