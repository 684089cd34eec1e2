"""restart: the controller anew, and nothing else. What runs goes on meanwhile, and is taken on again."""

from __future__ import annotations

import os

import click

from llmsched.cli import cluster, show, terminal


@click.command()
@show.json_option
def restart() -> None:
    """End the controller of this home and start it again as it was started, after an upgrade for example.

    Work and endpoints go on meanwhile; requests to endpoints are answered, and the API is away for some seconds.
    """
    from llmsched.api import home
    from llmsched.client import Client
    from llmsched.client.transport import default_home
    from llmsched.errors import RequestError

    folder = default_home()
    running, options = home.announced(folder), home.started_with(folder)
    if running is None or not options:
        raise RequestError(
            "no controller runs here that could be started again.", code="not_running", hint="llmsched up."
        )
    cluster.end_controller(folder, running, stop_everything=False)
    url = cluster.start_controller(folder, [one for one in options if one != "--fresh"], dict(os.environ))
    with Client(url, home.own_token(folder)) as client:
        health = client.health()
    show.answer(health, lambda: terminal.echo(f"The controller answers again at {url}."))
