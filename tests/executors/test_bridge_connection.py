"""Whether a cluster asks for a token: the one thing the bridge finds out for itself before it does anything."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llmsched.executors.bridge import connection


@contextmanager
def dashboard(status):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            assert "authorization" not in self.headers
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "is_open"), [(200, True), (401, False), (403, False)])
def test_a_dashboard_that_answers_without_a_token_lets_anyone_in(monkeypatch, status, is_open):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # what a proxy says is not what the cluster says
    with dashboard(status) as url:
        assert connection.lets_anyone_in(url) is is_open


def test_a_dashboard_that_is_not_there_lets_nobody_in():
    assert not connection.lets_anyone_in("http://127.0.0.1:9")
