"""web: where the page of the controller is, and the way into it.

The token travels in the fragment, which browsers send to nobody. It is printed on a terminal only: what is not a
terminal is often a log that others read. `--open` hands it over in a private file, since the arguments of a process
can be seen by everyone on the machine.
"""

from __future__ import annotations

import html
import json
import sys

import click

from llmsched.cli import show, terminal


@click.command()
@click.option("--open", "opens", is_flag=True, help="Open it in the browser of this machine.")
@show.json_option
def web(opens: bool) -> None:
    """The address of the web view: queue, GPUs and events, live.

    On a terminal the address holds your token, so that the page need not ask for it; elsewhere it does not.
    """
    from llmsched.client.transport import default_home, locate

    url, token = locate()
    with show.connect() as client:
        client.health()  # refused here, in words, rather than in the browser
    inside = f"{url}/#token={token}"
    if opens:
        import webbrowser

        from llmsched.api.home import prepare, write_private

        file = prepare(default_home()) / "web-view.html"
        write_private(file, f'<meta http-equiv="refresh" content="0;url={html.escape(inside, quote=True)}">\n')
        if not webbrowser.open(file.as_uri()):
            terminal.echo("no browser was found here; open the address yourself.", err=True)
    if show.wants_json():
        terminal.echo(json.dumps({"url": f"{url}/"}))
    elif sys.stdout.isatty():
        terminal.echo(inside)
    else:
        terminal.echo(f"{url}/")
        terminal.echo("The page asks for a token; on a terminal this address has yours in it.", err=True)
