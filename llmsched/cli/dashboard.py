"""dashboard: Ray's own dashboard in a browser here, of one Ray program or of the cluster, until Ctrl-C."""

from __future__ import annotations

import json

import click

from llmsched.cli import show, terminal


@click.command()
@click.argument("name", required=False)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On loopback.  [default: a free one]")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser of this machine.")
@show.json_option
def dashboard(name: str | None, port: int, opens: bool) -> None:
    """Ray's dashboard of NAME, a kind: ray workload that runs; without NAME the cluster's (operators and auditors).

    It is asked through the controller with your token, wherever the machines are; the address holds a key that ends
    with this command. One looks, and changes nothing: jobs go through llmsched or ray job submit.
    """
    import asyncio

    with show.connect() as client:
        client.dashboard(name)  # refused here, in words, rather than in the browser
    asyncio.run(_serve(name, port, opens))


async def _serve(name: str | None, port: int, opens: bool) -> None:
    import webbrowser

    import uvicorn

    from llmsched.api.server import listen
    from llmsched.client.core import dashboard_path
    from llmsched.client.transport import Transport, locate
    from llmsched.own_origin import LOOPBACK, OwnOrigin

    transport, prefix = Transport(*locate()), dashboard_path(name)
    listener = listen(LOOPBACK[0], port)
    try:
        page = OwnOrigin(listener.getsockname()[1], lambda path, headers: transport.opened(prefix + path, headers))
        url = page.address()
        terminal.echo(json.dumps({"url": url}) if show.wants_json() else url)
        if not show.wants_json():
            terminal.echo("Ctrl-C ends it.", err=True)
        if opens and not webbrowser.open(url):
            terminal.echo("no browser was found here; open the address yourself.", err=True)
        config = uvicorn.Config(page, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        listener.close()
        await transport.close()
