"""The fake vLLM for processes of their own: what one engine has kept, another one takes through a socket.

`install(folder)` makes a package `vllm` there, for whoever has the folder on its path.
"""

import json
import socket
import socketserver
import sys
import threading
import types
from dataclasses import astuple
from pathlib import Path

import fake_vllm

WITHIN_S = 10.0


def install(folder):
    package = Path(folder) / "vllm"
    package.mkdir(parents=True)
    here = str(Path(__file__).parent)
    lines = (
        f"import sys\nsys.path.append({here!r})\nimport vllm_on_wires\nvllm_on_wires.become(sys.modules[__name__])\n"
    )
    (package / "__init__.py").write_text(lines)


def become(package):
    """This package is vLLM from now on."""
    fake_vllm.NETWORK = Wires()
    for name, inside in fake_vllm.modules().items():
        if name == "vllm":
            vars(package).update(inside)
        else:
            sys.modules[name] = fake_vllm.module(name, inside)


class Wires:
    """In the place of `fake_vllm.NETWORK`: an engine is asked at its place, wherever it runs."""

    def __init__(self):
        self._servers = {}

    def __contains__(self, place):
        return place in self._servers

    def __setitem__(self, place, engine):
        class Asked(socketserver.StreamRequestHandler):
            def handle(self):
                what, request = json.loads(self.rfile.readline())
                kept = None if what == "engine" else getattr(engine.kept, what)(request, None)
                answer = engine.config.engine_id if what == "engine" else kept and astuple(kept)
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        server = self._servers[place] = socketserver.ThreadingTCPServer(place, Asked)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(self, place):
        try:
            return Remote(place)
        except OSError:
            return None

    def pop(self, place, default=None):
        if (server := self._servers.pop(place, None)) is not None:
            server.shutdown()
            server.server_close()


class Remote:
    """An engine that another process has, as far as one that fetches from it looks at it. Raises OSError."""

    def __init__(self, place):
        self._place = place
        self.config = types.SimpleNamespace(engine_id=self._ask("engine", ""))
        self.kept = self

    def get(self, request):
        return self._kept("get", request)

    def pop(self, request):
        return self._kept("pop", request)

    def _kept(self, what, request):
        found = self._ask(what, request)
        return found and fake_vllm.Kept(*found)

    def _ask(self, what, request):
        with socket.create_connection(self._place, WITHIN_S) as wire, wire.makefile("rwb") as file:
            file.write(json.dumps([what, request]).encode() + b"\n")
            file.flush()
            return json.loads(file.readline())
