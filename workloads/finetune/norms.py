"""Batch norms, whose numbers depend on what else is in a batch, and so on the number of workers: they learn with the
averages that they came with. A model of chance came with none that fit it: they are taken once, from the first rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

ROWS = 64  # that the averages of a model of chance are taken from


def learn(model: torch.nn.Module) -> None:
    """As `model.train()`, but for batch norms."""
    model.train()
    for norm in _norms(model):
        norm.eval()


def take_averages(model: torch.nn.Module, forward: Callable[[], None]) -> None:
    """Of what `forward` shows the model: the same rows on every rank."""
    if not any(_norms(model)):
        return
    model.eval()
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None  # all batches count alike
        norm.train()
    with torch.no_grad():
        forward()
    model.eval()


def _norms(model: torch.nn.Module) -> Iterator[torch.nn.modules.batchnorm._BatchNorm]:
    return (each for each in model.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm))
