"""What every application answers to a body that is no object: 422, whatever the application forgets to check."""

import asyncio
import importlib
import inspect
import pkgutil

import pytest
from starlette.exceptions import HTTPException

from workloads import apps
from workloads.inference.json_app import JsonApp


def classes():
    """Of all modules of the parts, those that are called with a body."""
    for module in pkgutil.iter_modules(apps.__path__):
        for one in vars(importlib.import_module(f"workloads.apps.{module.name}")).values():
            is_here = isinstance(one, type) and one.__module__ == f"workloads.apps.{module.name}"
            if is_here and not inspect.isabstract(one) and any("__call__" in vars(each) for each in one.__mro__):
                yield one


APPS = sorted(classes(), key=lambda one: one.__name__)


def test_the_parts_are_all_there():
    assert {"Desk", "Voice", "Retriever", "Monitor", "Forecaster", "Ranker", "Espeak"} <= {one.__name__ for one in APPS}


@pytest.mark.parametrize("kind", APPS)
@pytest.mark.parametrize("body", [[], None, "text", 3, True])
def test_a_body_that_is_no_object_is_refused_by_every_part(kind, body):
    with pytest.raises(HTTPException, match="must be a JSON object") as refused:
        asyncio.run(JsonApp(kind.__new__(kind)).call(body))
    assert refused.value.status_code == 422


class Takes:
    """A class of the user's own that says nothing of what it takes."""

    def __call__(self, body):
        return body


class Alone:
    def __call__(self, body: dict):
        return body


def test_a_class_that_does_not_say_so_gets_whatever_is_sent():
    assert asyncio.run(JsonApp(Takes()).call([1, 2])) == [1, 2]
    assert asyncio.run(JsonApp(Alone()).call({"a": 1})) == {"a": 1}
    with pytest.raises(HTTPException, match="not a list"):
        asyncio.run(JsonApp(Alone()).call([1, 2]))
