"""From rows to answers, by a model as it is served or by a function of the user's own; and which row is to blame.

`Answers` is one call for some rows of a file, whose images and sounds are named from a folder: as many answers, in
their order. `blaming` calls it for all of them, and when that
fails finds the rows because of which it does: a row is to blame only while another one still gets its answer.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsched import sanitize
from llmsched.data import media
from llmsched.data.messages import Unusable
from llmsched.data.questions import question
from llmsched.data.rows import Bad, Row
from llmsched.data.tasks import KINDS
from llmsched.runtime import environment, redaction
from llmsched.runtime.environment import UserError
from workloads.batch.output import ROW
from workloads.sources import BadInput, resolve_model

Answers = Callable[[Sequence[Row], Path], "list[Row | Bad]"]
AT_ONCE = 256  # questions to a language model under way


def answers_of(
    batch: Mapping[str, Any],
    columns: Mapping[str, str],
    member: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Answers:
    """What a `batch` section of a spec asks for, loaded. Raises BadInput, UserError."""
    if batch.get("map"):
        return _function(batch["map"], batch.get("args") or {})
    return _model(batch, columns, member, inputs)


def blaming(answers: Answers) -> Answers:
    """`answers`, with a Bad in the place of each row that makes it fail. Raises what it raises where it fails with a
    row that it answered before, too: then it is broken, or what it needs is away, and no row can be blamed."""
    last: list[tuple[Row, Path]] = []  # that got an answer

    def ask(rows: Sequence[Row], folder: Path) -> list[Row | Bad]:
        try:
            found = answers(rows, folder)
        except UserError:
            raise
        except Exception as error:
            if len(rows) == 1:
                for row, place in last:
                    answers([row], place)
                return [Bad(_why(error))]
            half = len(rows) // 2
            return [*ask(rows[:half], folder), *ask(rows[half:], folder)]
        answered = (row for row, one in zip(rows, found, strict=True) if not isinstance(one, Bad))
        last[:] = next(([(row, folder)] for row in answered), last)
        return found

    return ask


def _why(error: Exception) -> str:
    words = error.message if hasattr(error, "message") else f"{type(error).__name__}: {sanitize.first_line(error)}"
    return f"cannot be answered: {sanitize.line(redaction.clean(str(words)), 300)}"


# --- a function ---------------------------------------------------------------------------------------------------


def _function(entry: str, args: Mapping[str, Any]) -> Answers:
    """`module:name`: a function of a list of rows, or a class whose instances are called with one. `args` are its own,
    or its instance's, keyword arguments."""
    what = f"batch.map {entry}"
    found = environment.load_entry(entry, "batch.map")
    try:
        inspect.signature(found).bind(*([] if inspect.isclass(found) else [[]]), **args)
    except TypeError as error:
        raise UserError(f"{what}: {error}, with batch.args {', '.join(args) or '{}'}") from None
    except ValueError:
        pass  # it tells no signature
    call = found(**args) if inspect.isclass(found) else lambda rows: found(rows, **args)
    if not callable(call):
        raise UserError(f"{what}: an instance of the class cannot be called; give it __call__(self, rows)")

    def answer(rows: Sequence[Row], folder: Path) -> list[Row | Bad]:
        made = call([dict(row) for row in rows])
        if inspect.isawaitable(made):
            made = asyncio.run(_awaited(made))
        if isinstance(made, tuple) or inspect.isgenerator(made):
            made = list(made)
        if not isinstance(made, list) or len(made) != len(rows):
            got = f"a list of {len(made):,}" if isinstance(made, list) else f"a {type(made).__name__}"
            raise UserError(f"{what}: expected a list of {len(rows):,} answers, one for each row, and got {got}")
        if wrong := next((one for one in made if not isinstance(one, dict) and one is not None), None):
            raise UserError(f"{what}: expected an object (a dict) for each row, and got a {type(wrong).__name__}")
        if any(ROW in one for one in made if one is not None):
            raise UserError(f"{what}: an answer may not be called {ROW}, which says where its row stands in the input")
        return [Bad("got None for an answer") if one is None else one for one in made]

    return answer


async def _awaited(made: Any) -> Any:
    return await made


# --- a model ------------------------------------------------------------------------------------------------------


def _model(
    batch: Mapping[str, Any],
    columns: Mapping[str, str],
    member: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Answers:
    """The server that a replica would have, asked in this process."""
    from llmsched.data.parameters import RequestError
    from workloads.inference.replica import server_for

    serve = {name: batch[name] for name in ("task", "engine_kwargs")} | {"model": {"source": batch["model"]}}
    threads = max(1, min(int(member.get("cpus") or 1), environment.cpu_share(1)))
    server = server_for(serve, resolve_model(batch["model"], inputs), threads, float(member.get("gpus") or 0))
    ask = _ASK[KINDS[batch["task"]].answers[0]]

    def answer(rows: Sequence[Row], folder: Path) -> list[Row | Bad]:
        asked: list[Row | Bad] = []
        for row in rows:
            try:
                asked.append(_sendable(question(row, columns, batch["task"]), folder))
            except Unusable as error:
                asked.append(Bad(str(error)))
        questions = [one for one in asked if not isinstance(one, Bad)]
        found = iter(asyncio.run(ask(server, questions, batch)) if questions else [])
        return [one if isinstance(one, Bad) else next(found) for one in asked]

    def answer_or_refuse(rows: Sequence[Row], folder: Path) -> list[Row | Bad]:
        try:
            return answer(rows, folder)
        except RequestError as error:
            if error.param in (batch.get("args") or {}):
                raise BadInput(f"batch.args: {error.message}") from error
            raise

    return answer_or_refuse


def _sendable(asked: Row, folder: Path) -> Row:
    """With its image or sound as a request has it. Raises Unusable."""
    for role in asked.keys() & media.ROLES:
        source = media.of_row(asked[role], folder, role)
        data = source.read_bytes() if isinstance(source, Path) else source
        asked = {**asked, role: base64.b64encode(data).decode()}
    return asked


async def _embed(server: Any, questions: list[Row], batch: Mapping[str, Any]) -> list[Row]:
    import numpy

    said = await server.call("embeddings", {"input": [one["text"] for one in questions]}, None)
    return [{"embedding": numpy.asarray(one["embedding"], numpy.float32)} for one in said["data"]]


async def _classify(server: Any, questions: list[Row], batch: Mapping[str, Any]) -> list[Row]:
    """A label and its score; of a task that finds several things in a row, or none, a list of them."""
    said = await server.call("classify", {"input": questions}, None)
    found: list[list[Row]] = [[] for _ in questions]
    for one in said["data"]:
        found[one.pop("index")].append(one)
    if KINDS[batch["task"]].learns.keys() >= {"regress"}:
        return [each[0] for each in found]
    return [{"found": each} for each in found]


async def _generate(server: Any, questions: list[Row], batch: Mapping[str, Any]) -> list[Row]:
    """A text is a message of the user's to a model that has a chat template, else what it goes on from."""
    free, args = asyncio.Semaphore(AT_ONCE), batch.get("args") or {}

    async def one(asked: Row) -> Row:
        async with free:
            if "messages" not in asked and not server.can_chat:
                said = await server.call("completions", {**args, "prompt": asked["text"]}, None)
                choice = said["choices"][0]
                return {"answer": choice["text"], "finish_reason": choice["finish_reason"]}
            content: Any = asked.get("text")
            if "image" in asked:
                shown = {"type": "image_url", "image_url": {"url": f"data:image;base64,{asked['image']}"}}
                content = [shown, {"type": "text", "text": asked["text"]}]
            messages = asked.get("messages") or [{"role": "user", "content": content}]
            said = await server.call("chat/completions", {**args, "messages": messages}, None)
            choice = said["choices"][0]
            return {"answer": choice["message"]["content"], "finish_reason": choice["finish_reason"]}

    return list(await asyncio.gather(*map(one, questions)))


_ASK: dict[str, Callable[[Any, list[Row], Mapping[str, Any]], Coroutine[Any, Any, list[Row]]]] = {
    "chat/completions": _generate,
    "classify": _classify,
    "embeddings": _embed,
}
