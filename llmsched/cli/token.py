"""token: make, list and revoke the tokens of the controller of this home. A running controller notices at once."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from llmsched.cli import new_key, show, terminal
from llmsched.cli.columns import Columns
from llmsched.control.roles import ASKS_ENDPOINTS, CALLER, ROLES
from llmsched.spec.endpoint_keys import PRIORITIES, Terms

if TYPE_CHECKING:
    from llmsched.api.home import TokenRecord


@click.group()
def token() -> None:
    """Make, list and revoke tokens, of the controller whose home is here."""


@token.command()
@click.argument("user")
@click.option("--role", type=click.Choice((*ROLES, CALLER)), default="submitter", show_default=True)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=90, show_default=True)
@click.option("--model", "models", multiple=True, metavar="NAME", help="An endpoint that a caller asks; repeatable.")
@click.option("--priority", type=click.Choice(PRIORITIES), default=Terms().priority, show_default=True)
@click.option("--requests-per-minute", type=click.IntRange(min=1), metavar="N", help="At most, of its key.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), metavar="N", help="Of prompts and answers together.")
@click.option("--trusting", is_flag=True, help="In single-user mode, where tokens are labels: make it all the same.")
@show.json_option
def create(
    user: str,
    role: str,
    days: float,
    models: tuple[str, ...],
    priority: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    trusting: bool,
) -> None:
    """A token for USER. It is shown once.

    \b
    viewer     reads USER's work, and that of queues that name USER as viewer or admin
    submitter  also submits to queues that let USER, and handles that work
    auditor    reads everything, changes nothing
    operator   may do everything
    caller     asks the endpoints that --model names, and nothing else: what is shown is a key, for an app to keep

    Its key asks endpoints with --priority: where all replicas are full, critical requests wait and the others are told
    to come again; sheddable ones are told so a little earlier. Beyond a limit of a minute the answer is 429.
    """
    from llmsched.api import home
    from llmsched.client.transport import default_home
    from llmsched.spec.endpoint_keys import key_of

    folder = home.prepare(default_home())
    terms = Terms(priority, requests_per_minute, tokens_per_minute)
    text, record = home.create_token(folder, user, role, days, trusting=trusting, models=models, terms=terms)
    shown = key_of(text) if role == CALLER else text
    until = show.clock(record.expires or 0)
    noun = "Key" if role == CALLER else "Token"
    if show.wants_json():
        said = {"id": record.id, "user": user, "role": role, "expires": record.expires, noun.lower(): shown}
        terminal.echo(json.dumps(said))
    else:
        terminal.echo(shown)
        terminal.echo(f"{noun} {record.id} of {user} ({role}), until {until}. It is not shown again.", err=True)
        if home.single_user(folder):
            terminal.echo("Single-user mode: it says who somebody is, and keeps nobody from anything.", err=True)
    if role in ASKS_ENDPOINTS:  # after it was shown: whatever happens here, it is not lost
        new_key.tell(folder, key_of(text), models)


@token.command()
@show.json_option
def key() -> None:
    """The key of your token, for endpoints: what an OpenAI client calls api_key.

    Endpoints take the token too. Its key is good for endpoints and nothing else, and ends with the token: give it to
    programs, which need not be able to do more.
    """
    from llmsched.client.transport import locate
    from llmsched.spec.endpoint_keys import key_of

    _, text = locate(None, None, None)
    if show.wants_json():
        terminal.echo(json.dumps({"key": key_of(text)}))
    else:
        terminal.echo(key_of(text))


@token.command("list")
@show.json_option
def list_() -> None:
    """Who has one."""
    from llmsched.api import home
    from llmsched.client.transport import default_home

    records = home.load_records(default_home())
    if show.wants_json():
        fields = ("id", "user", "role", "created", "expires", "models", *Terms._fields)
        terminal.echo(json.dumps([{name: getattr(record, name) for name in fields} for record in records], indent=2))
        return
    table = Columns("ID", "USER", "ROLE", "EXPIRES", "ASKS", "TERMS", last_takes_rest=False)
    for record in records:
        over = record.expires is not None and record.expires < time.time()
        expires = "never" if record.expires is None else show.clock(record.expires) + (" (over)" if over else "")
        table.add_row(record.id, record.user, record.role, expires, ", ".join(record.models) or "-", _terms(record))
    table.show()


def _terms(record: TokenRecord) -> str:
    """What is not as usual of how its key asks."""
    limits = ((record.requests_per_minute, "requests/min"), (record.tokens_per_minute, "tokens/min"))
    said = [record.priority] if record.priority != Terms().priority else []
    return ", ".join(said + [f"{limit:,} {what}" for limit, what in limits if limit is not None]) or "-"


@token.command()
@click.argument("token_id", required=False)
@click.option("--user", help="Every token of this user, instead of one by its id.")
@show.json_option
def revoke(token_id: str | None, user: str | None) -> None:
    """Make a token worthless, by its id, or all of --user. What is still being answered to it ends within a second."""
    from llmsched.api import home
    from llmsched.client.transport import default_home
    from llmsched.errors import RequestError, SpecError

    if (token_id is None) == (user is None):
        raise SpecError("one of an id and --user is needed.", code="options", hint="See llmsched token list.")
    folder = default_home()
    records = home.made_records(folder)
    over = [record.id for record in records if token_id == record.id or user == record.user]
    if not over:
        what = f'there is no token "{token_id}".' if user is None else f'"{user}" has no token.'
        raise RequestError(what, code="unknown_token", hint="See llmsched token list.")
    home.save_records(folder, [record for record in records if record.id not in over])
    if show.wants_json():
        terminal.echo(json.dumps({"revoked": over if user is not None else over[0]}))
    else:
        terminal.echo("\n".join(f"Token {one} is revoked." for one in over))
