"""What a replica that could not be made says, from its constructor to what the controller is told."""

import json

import pytest

from llmsched.executors.bridge.serve import _words
from llmsched.runtime.replica import INPUT_MARK, MARK, ReplicaHost


def failed(serve):
    spec = {"name": "x", "kind": "serve", "serve": {"task": "causal-lm", **serve}}
    order = {"gang": "x/0", "attempt": 1, "envs": {}, "members": [{"rank": 0, "cpus": 1.0}], "spec": spec}
    with pytest.raises(RuntimeError) as caught:
        ReplicaHost(json.dumps(order))
    return f"ray::ServeReplica:llms/x/0/1\n  File 'replica.py'\nRuntimeError: {caught.value}\nThe deployment failed."


def test_a_wrong_model_is_told_apart_from_a_fault_because_trying_again_is_no_use():
    text = failed({"model": {"id": "x", "source": "/no/such/model"}})
    assert INPUT_MARK in text
    assert _words(text).startswith("/no/such/model: no such file or folder")


def test_an_app_that_raises_may_be_tried_again(tmp_path, monkeypatch):
    made = "class Desk:\n    def __init__(self):\n        1 / 0\n\n    def __call__(self, body):\n        return body\n"
    (tmp_path / "broken_desk.py").write_text(made)
    monkeypatch.syspath_prepend(tmp_path)
    text = failed({"app": "broken_desk:Desk"})
    assert MARK in text and INPUT_MARK not in text
    assert _words(text) == "ZeroDivisionError: division by zero (broken_desk.py:3, in __init__)"
