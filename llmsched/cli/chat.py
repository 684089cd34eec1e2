"""chat, classify, embed, transcribe: ask an endpoint from a terminal, or put one question to it from a script."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import click

from llmsched.cli import given, show, terminal
from llmsched.errors import SpecError


@click.command()
@click.argument("name")
@click.option("-m", "--message", help="One question; without it, a conversation.")
@click.option(
    "--image", "images", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Shown with the question."
)
@click.option("--system", help="What the model is told first.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="At most so many tokens an answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 is always the same answer.")
@click.option("--no-stream", is_flag=True, help="The whole answer at once.")
@show.json_option
def chat(
    name: str,
    message: str | None,
    images: tuple[str, ...],
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    no_stream: bool,
) -> None:
    """Talk to NAME: a model of the endpoint, or one of its adapters as MODEL:ADAPTER."""
    parameters = {
        key: value for key, value in (("max_tokens", max_tokens), ("temperature", temperature)) if value is not None
    }
    said: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    if message is None and not sys.stdin.isatty():
        message = given.text().strip()
    if message is not None and not message.strip() and not images:
        raise SpecError("there is no question: it is empty.", code="options", hint="Give it with -m, or in a pipe.")
    with show.connect() as client:
        model = client.chat(name)
        if message is not None:
            said.append({"role": "user", "content": _with_images(message, images)})
            if show.wants_json():
                terminal.echo(json.dumps(model.respond(said, **parameters), indent=2))
            else:
                _answer(model, said, parameters, no_stream)
            return
        terminal.echo(f"Talking to {name}. An empty line or Ctrl-D ends it, Ctrl-C an answer.", err=True)
        while question := _ask():
            asked = {"role": "user", "content": _with_images(question, images)}
            try:
                answer = _answer(model, [*said, asked], parameters, no_stream)
            except KeyboardInterrupt:  # the question is taken back with it, images too
                terminal.echo()
                continue
            images = ()  # they stand in the conversation now
            said += [asked, {"role": "assistant", "content": answer}]


def _with_images(text: str, files: tuple[str, ...]) -> Any:
    """As OpenAI's API has it: parts, where there is more than the text."""
    shown = [{"type": "image_url", "image_url": {"url": f"data:;base64,{_base64(file)}"}} for file in files]
    return [*shown, {"type": "text", "text": text}] if shown else text


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _answer(model: Any, said: list[dict[str, Any]], parameters: dict[str, Any], no_stream: bool) -> str:
    if no_stream:
        text: str = model.complete(said, **parameters)
        terminal.echo(text)
        return text
    pieces = []
    for piece in model.stream(said, **parameters):
        pieces.append(piece)
        terminal.echo(piece, nl=False)
    terminal.echo()
    return "".join(pieces)


TEXTS = click.argument("texts", nargs=-1, metavar="[TEXT]...")


@click.command()
@click.argument("name")
@TEXTS
@click.option("--pair", help="The second text of each pair; of a question, the passage that may answer it.")
@click.option("--image", "images", multiple=True, type=click.Path(exists=True, dir_okay=False), help="An image file.")
@click.option("--audio", "sounds", multiple=True, type=click.Path(exists=True, dir_okay=False), help="A WAV file.")
@click.option("--explain", is_flag=True, help="Tell what each word adds to its label.")
@show.json_option
def classify(
    name: str, texts: tuple[str, ...], pair: str | None, images: tuple[str, ...], sounds: tuple[str, ...], explain: bool
) -> None:
    """What endpoint NAME finds in each TEXT, image or audio: label and score, entities, regions, an answer. A TEXT with
    images is a question about each of them.

    Without any, in each line of the input.
    """
    asked: list[Any] = [
        {role: _base64(file)} for role, files in (("image", images), ("audio", sounds)) for file in files
    ]
    if len(texts) == 1 and images:  # a question about each
        asked = [{"text": texts[0], **one} for one in asked]
    elif texts or not asked:
        asked += [[text, pair] if pair else text for text in _texts(texts)]
    with show.connect() as client:
        found = client.chat(name).classify(asked, explain=explain)
    if show.wants_json():
        terminal.echo(json.dumps(found, indent=2))
        return
    for each in found:
        terminal.echo(_shown(each))
        for word in sorted(each.get("why", ()), key=lambda word: -abs(word["weight"])):
            terminal.echo(f"  {word['weight']:+.3f}  {word['text']}")


def _shown(found: dict[str, Any]) -> str:
    """A label and how sure it is, with the text that it is said of where that is a part; or a number."""
    score = found["score"] if "score" in found else max(found["scores"].values())
    part = "" if found.get("text") in (None, found["label"]) else f"  {found['text']}"
    if "box" in found.get("at", {}):
        part = "  " + " ".join(f"{edge:g}" for edge in found["at"]["box"])
    is_number = found["label"] == "value" and "scores" not in found
    return f"{found['label']}  {score:.6g}" if is_number else f"{found['label']}  {score:.1%}{part}"


@click.command()
@click.argument("name")
@TEXTS
@show.json_option
def embed(name: str, texts: tuple[str, ...]) -> None:
    """The vector that endpoint NAME makes of each TEXT, one a line; without TEXT, of each line of the input."""
    asked = _texts(texts)
    with show.connect() as client:
        found = client.chat(name).embed(asked)
    if show.wants_json():
        terminal.echo(json.dumps(found))
        return
    for vector in found:
        terminal.echo(" ".join(f"{number:.6g}" for number in vector))


@click.command()
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE...")
@show.json_option
def transcribe(name: str, files: tuple[str, ...]) -> None:
    """What endpoint NAME hears in each audio FILE, one a line."""
    with show.connect() as client:
        model = client.chat(name)
        found = [model.transcribe(Path(file).read_bytes()) for file in files]
    for text in [json.dumps(found)] if show.wants_json() else found:
        terminal.echo(text)


def _base64(file: str) -> str:
    return base64.b64encode(Path(file).read_bytes()).decode()


def _texts(texts: tuple[str, ...]) -> list[str]:
    """Raises SpecError for none."""
    chosen = [*texts] or ([] if sys.stdin.isatty() else [line for line in given.text().splitlines() if line])
    if not chosen:
        raise SpecError("there is no text.", code="options", hint="Write it after the name, in quotes.")
    return chosen
