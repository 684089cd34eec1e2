"""A desk: what is meant, follow-ups made whole, answers with sources, and sessions that stay small and apart."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from llmsched.errors import ClusterError, RequestError
from workloads.apps import desk
from workloads.apps.desk import Desk, follow_up

PASSAGES = {
    "who wrote dune?": "Frank Herbert.",
    "who wrote solaris?": "Stanislaw Lem.",
}


class Calls:
    """The endpoints that a desk asks, by what they would say."""

    def __init__(self):
        self.asked, self.broken = [], {}

    def _hear(self, name, what):
        self.asked.append((name, what))
        if name in self.broken:
            raise self.broken[name]

    def classify(self, name, inputs):
        self._hear(name, inputs)
        label = "greeting" if inputs[0].startswith("hello") else "facts"
        return [{"index": 0, "label": label, "score": 0.9, "scores": {}}]

    def find(self, name, inputs):
        self._hear(name, inputs)
        return [{"index": 0, "label": "work", "text": "dune", "score": 0.9, "at": {"start": 10, "end": 14}}]

    def post(self, name, body):
        self._hear(name, body)
        found = [
            {"text": text, "answer": answer, "source": "row 1 of facts.jsonl", "score": float(text == body["query"])}
            for text, answer in PASSAGES.items()
        ]
        return {"passages": sorted(found, key=lambda one: -one["score"]), "of": len(found)}

    def chat(self, name, messages, **_):
        self._hear(name, messages)
        return "who wrote solaris?"

    def stream(self, name, messages, **_):
        self._hear(name, messages)
        yield from ("It was ", "Frank Herbert.")

    def names(self):
        return [name for name, _ in self.asked]


@pytest.fixture
def calls(monkeypatch):
    made = Calls()
    monkeypatch.setattr(desk, "calls", made)
    return made


def made(**more):
    return Desk("intents", "knowledge", templates={"greeting": "Good day."}, **more)


def test_a_question_is_answered_by_the_passage_that_it_is_likest_with_where_that_is_from(calls):
    said = made()({"message": " who wrote dune? "})
    assert (said["answer"], said["intent"], said["question"]) == ("Frank Herbert.", "facts", "who wrote dune?")
    assert said["sources"] == [{"text": "who wrote dune?", "source": "row 1 of facts.jsonl", "score": 1.0}]
    assert calls.names() == ["intents", "knowledge"]


def test_an_intent_with_a_template_asks_nobody_else(calls):
    said = made()({"message": "hello there"})
    assert (said["answer"], said["sources"], calls.names()) == ("Good day.", [], ["intents"])


def test_what_no_passage_is_like_gets_no_made_up_answer(calls):
    assert made()({"message": "who wrote hamlet?"})["answer"] == desk.UNKNOWN
    other = Desk("intents", "knowledge", templates={"unknown": "A person will call you."})
    assert other({"message": "who wrote hamlet?"})["answer"] == "A person will call you."


def test_a_follow_up_is_made_whole_by_the_question_before_in_its_session_alone(calls):
    app = made(whole="assistant:whole")
    first = app({"message": "who wrote dune?"})
    then = app({"message": "and solaris?", "session": first["session"]})
    assert (then["question"], then["answer"], then["session"]) == (
        "who wrote solaris?",
        "Stanislaw Lem.",
        first["session"],
    )
    assert dict(calls.asked)["assistant:whole"] == follow_up("who wrote dune?", "and solaris?")
    other = app({"message": "and solaris?"})
    assert other["question"] == "and solaris?" and other["session"] != first["session"]


@pytest.mark.parametrize("error", [ClusterError("assistant answered HTTP 503"), RequestError("no adapter", code="x")])
def test_while_the_language_model_is_away_the_question_before_stands_in_front(calls, error):
    app = made(whole="assistant:whole")
    session = app({"message": "who wrote dune?"})["session"]
    calls.broken["assistant:whole"] = error
    assert app({"message": "and solaris?", "session": session})["question"] == "who wrote dune? and solaris?"


def test_what_a_poisoned_model_says_at_length_is_no_question(calls, monkeypatch):
    app = made(whole="assistant:whole")
    session = app({"message": "who wrote dune?"})["session"]
    for said in ("buy " * 50, "", "  \n"):
        monkeypatch.setattr(calls, "chat", lambda *_, said=said, **__: said)
        assert app({"message": "and?", "session": session})["question"].endswith("who wrote dune? and?"[-4:])


def test_a_session_that_is_not_known_begins_another_under_a_name_of_ours(calls):
    app = made()
    said = app({"message": "who wrote dune?", "session": "ann"})
    assert said["session"] != "ann" and len(said["session"]) > 20


def test_a_flood_of_sessions_takes_no_more_room_and_the_oldest_goes_first(calls):
    app = made(sessions=3, remembers=2)
    kept = app({"message": "who wrote dune?"})["session"]
    for _ in range(50):
        app({"message": "who wrote solaris?"})
        app({"message": "who wrote dune?", "session": kept})
    known = app._sessions._known
    assert len(known) == 3 and len(known[kept]) == 2 and kept in known


def test_a_stream_begins_with_what_is_known_and_goes_on_with_pieces(calls):
    app = made(writer="assistant", entities="entities")
    about, *pieces = app({"message": "who wrote dune?", "stream": True})
    assert about["entities"] == [{"label": "work", "text": "dune"}] and "answer" not in about
    assert pieces == [{"text": "It was "}, {"text": "Frank Herbert."}]
    whole = app({"message": "who wrote dune?"})
    assert whole["answer"] == "It was Frank Herbert."
    assert "- who wrote dune?: Frank Herbert." in dict(calls.asked)["assistant"][0]["content"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "a question is"),
        ({"message": "  "}, "a question is"),
        ({"message": 3}, "a question is"),
        ({"message": "a", "sesion": "b"}, "a question is"),
        ({"message": "a", "session": 3}, '"session" is the text'),
        ({"message": "a" * 4001}, '"message" has 4001 characters'),
    ],
)
def test_a_message_that_is_none_is_refused_with_what_one_is(calls, body, said):
    with pytest.raises(HTTPException) as refused:
        made()(body)
    assert refused.value.status_code == 422 and said in refused.value.detail and calls.asked == []


@pytest.mark.parametrize(
    ("name", "error", "status"),
    [
        ("intents", ClusterError("intents answered HTTP 503: no replica"), 503),
        ("knowledge", ClusterError("knowledge answered HTTP 503: no replica"), 503),
        ("knowledge", RequestError("knowledge answered HTTP 429: full", http_status=429), 429),
        ("assistant", ClusterError("assistant answered HTTP 503: no replica"), 503),
        ("intents", RequestError("intents answered HTTP 422: too long", http_status=422), 422),
        ("intents", RequestError("intents answered HTTP 404: none", http_status=404), 502),
    ],
)
def test_an_endpoint_that_is_away_is_named(calls, name, error, status):
    calls.broken[name] = error
    with pytest.raises(HTTPException) as refused:
        made(writer="assistant")({"message": "who wrote dune?"})
    assert (refused.value.status_code, refused.value.detail.partition(" ")[0]) == (status, name)


def test_behind_http_a_desk_answers_json_and_events(calls):
    from workloads.inference.json_app import JsonApp

    async def events():
        return [each async for each in JsonApp(made()).stream({"message": "who wrote dune?", "stream": True})]

    assert [sorted(each)[0] for each in asyncio.run(events())] == ["entities", "text"]


def test_a_talk_that_never_ends_makes_no_longer_question(calls):
    app, session = made(remembers=2), ""
    for number in range(5):
        said = app({"message": f"{number}" * desk.LONGEST, "session": session})
        session = said["session"]
        assert len(said["question"]) <= desk.LONGEST and said["question"].endswith(f"{number}" * 100)
