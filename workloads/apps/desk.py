"""A desk that answers customers: what is meant, which question that is, an answer with where it is from.

    serve: {app: "workloads.apps.desk:Desk", args: {intents: intents, knowledge: knowledge, whole: "assistant:whole"}}
    calls: [intents, knowledge, assistant]

`{"message": "...", "session": "..."}` -> `{"session", "question", "intent", "score", "entities", "answer", "sources"}`;
with `"stream": true` the same as events: all but the answer, then its pieces as `{"text": ...}`. A session is begun by
a message without one and named by its answer: nobody comes upon another's by a name. What it is about is remembered
here alone, so ask with the header `X-Session-Id` and `routing: session-affinity` where there are several replicas.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from starlette.exceptions import HTTPException

from llmsched.errors import LlmschedError
from llmsched.runtime import calls
from workloads.apps.asking import asked

LONGEST = 4_000  # characters of a message
UNKNOWN = "I do not know that. Please ask in other words, or ask for a person."


def follow_up(earlier: str, now: str) -> list[dict[str, str]]:
    """What a language model is asked to make a question whole: the messages of training and serving alike."""
    return [{"role": "user", "content": f"Earlier: {earlier}\nNow: {now}\nWhole:"}]


class Desk:
    """Names of endpoints: `intents` (sequence-classification), `knowledge` (a Retriever, whose passages have the text
    of an answer in the column `column`), `whole` (a language model that makes follow-ups whole; without one they are
    put behind the question before), `writer` (a language model that words the answer by its passages; without one the
    first passage is it), `entities` (token-classification).

    An intent of `templates` is answered with that text, and "unknown" is what is said where no passage is as like as
    `least`. `sessions` at most are remembered, each by its last `remembers` questions; the one that was asked in
    longest ago goes first."""

    def __init__(
        self, intents: str, knowledge: str, *, whole: str = "", writer: str = "", entities: str = "",
        templates: dict[str, str] | None = None, column: str = "answer", least: float = 0.3, passages: int = 3,
        sessions: int = 1000, remembers: int = 4,
    ) -> None:  # fmt: skip
        self._intents, self._knowledge, self._entities = intents, knowledge, entities
        self._whole, self._writer, self._templates = whole, writer, {"unknown": UNKNOWN, **(templates or {})}
        self._column, self._least, self._passages = column, least, passages
        self._sessions = Sessions(sessions, remembers)

    def __call__(self, body: dict[str, Any]) -> Any:
        message, session = body.get("message"), body.get("session") or ""
        if set(body) - {"message", "session", "stream"} or not isinstance(message, str) or not message.strip():
            raise HTTPException(422, 'a question is {"message": a text, "session": of the answer before, or none}')
        if len(message) > LONGEST:
            raise HTTPException(422, f'"message" has {len(message)} characters; at most {LONGEST} are read')
        if not isinstance(session, str):
            raise HTTPException(422, '"session" is the text that the answer before had')
        if body.get("stream"):
            return self._turn(message.strip(), session)
        about, *pieces = self._turn(message.strip(), session)
        return {**about, "answer": "".join(piece["text"] for piece in pieces)}

    def _turn(self, message: str, session: str) -> Iterator[dict[str, Any]]:
        session, earlier = self._sessions.take(session)
        question = self._made_whole(earlier[-1], message) if earlier else message
        [meant] = asked(calls.classify, self._intents, [question])
        entities = asked(calls.find, self._entities, [question]) if self._entities else []
        found: list[dict[str, Any]] = []
        if meant["label"] not in self._templates:
            wanted = {"query": question, "k": self._passages}
            there = asked(calls.post, self._knowledge, wanted)["passages"]
            found = [one for one in there if one["score"] >= self._least]
        self._sessions.put(session, question)
        yield {
            "session": session,
            "question": question,
            "intent": meant["label"],
            "score": meant["score"],
            "entities": [{key: one[key] for key in ("label", "text") if key in one} for one in entities],
            "sources": [{key: one[key] for key in ("text", "source", "score")} for one in found],
        }
        if not found:
            yield {"text": self._templates.get(meant["label"], self._templates["unknown"])}
        elif self._writer:
            yield from ({"text": piece} for piece in self._written(question, found))
        else:
            yield {"text": str(found[0].get(self._column, found[0]["text"]))}

    def _made_whole(self, earlier: str, now: str) -> str:
        """A desk whose language model is away goes on: what was asked before stands in front."""
        if self._whole:
            try:
                messages = follow_up(earlier, now)
                said = calls.chat(self._whole, messages, max_tokens=64, temperature=0).strip()
                if said and len(said) <= 2 * (len(earlier) + len(now)):
                    return said.splitlines()[0]
            except LlmschedError as error:
                print(f"[desk] {error}", flush=True)
        return f"{earlier} {now}"[-LONGEST:]  # the next question has this one in front

    def _written(self, question: str, found: list[dict[str, Any]]) -> Iterator[str]:
        known = "\n".join(f"- {one['text']}: {one.get(self._column, '')}" for one in found)
        prompt = f"Answer by this alone:\n{known}\n\n{question}"
        pieces = calls.stream(self._writer, [{"role": "user", "content": prompt}], max_tokens=128, temperature=0)
        first = asked(next, pieces, "")
        yield first
        yield from pieces


class Sessions:
    """Who asked what before. Names are ours, and cannot be guessed; one that is not known begins another."""

    def __init__(self, most: int, remembers: int) -> None:
        self._most, self._remembers = most, remembers
        self._known: OrderedDict[str, deque[str]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str) -> tuple[str, list[str]]:
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return name, list(self._known[name])
        return secrets.token_urlsafe(16), []

    def put(self, name: str, question: str) -> None:
        with self._lock:
            self._known.setdefault(name, deque(maxlen=self._remembers)).append(question)
            self._known.move_to_end(name)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
