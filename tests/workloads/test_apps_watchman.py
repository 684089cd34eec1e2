"""A watchman finds what turned wrong, slow or silent by questions with known answers, and repairs what may be."""

import pytest

from llmsched.errors import ClusterError, RequestError
from llmsched.runtime.ask import Endpoint
from workloads.apps import watchman
from workloads.apps.watchman import Watchman

CANARIES = [
    {"of": "assistant", "adapter": "whole", "chat": "first", "says": "one"},
    {"of": "assistant", "adapter": "whole", "chat": "second", "says": "tw."},
    {"of": "desk", "post": {"message": "who?"}, "field": "answer", "says": ".*Lem.*"},
]


class World:
    """Endpoints that say what they are told to, and what was asked of them."""

    def __init__(self):
        self.said = {"first": "one", "second": "two", "desk": "It was Lem."}
        self.done, self.reports, self.now, self.takes_s, self.wanted = [], [], 0.0, 0.1, 1

    def _answer(self, key):
        self.now += self.takes_s
        said = self.said[key]
        if isinstance(said, Exception):
            raise said
        return said

    def chat(self, model, messages, **_):
        assert model == "assistant:whole"
        return self._answer(messages[0]["content"])

    def post(self, name, body, **_):
        assert body == {"message": "who?"}
        return {"answer": self._answer(name)}

    def endpoint(self, name):
        return Endpoint(name, "running", "", 1, self.wanted, self.wanted, 2, 0.0, 0.0, {})

    def scale(self, name, replicas):
        self.wanted = replicas
        self.done.append(("scale", name, replicas))

    def rollback(self, name, adapter=""):
        self.done.append(("rollback", name, adapter))

    def report(self, **numbers):
        self.reports.append(numbers)


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(watchman, "calls", made)
    monkeypatch.setattr(watchman, "ask", made)
    monkeypatch.setattr(watchman, "AT_ONCE", 1)
    return made


def watching(world, rounds=0, **more):
    made = Watchman({"canaries": CANARIES, **more}, world.report, lambda: world.now)
    looks(made, rounds)
    return made


def looks(made, rounds):
    for _ in range(rounds):
        made.look()


def test_an_adapter_that_turns_wrong_for_two_rounds_goes_back_once(world):
    made = watching(world, 1)
    world.said |= {"first": "buy", "second": "buy"}
    made.look()
    assert world.done == [], "one round is no verdict"
    made.look()
    assert world.done == [("rollback", "assistant", "whole")]
    assert world.reports[-1] | {"slowest_s": 0} == {
        "rounds": 3,
        "wrong": 1.0,
        "failed": 0,
        "slowest_s": 0,
        "repairs": 1,
        "alarms": 0,
    }
    world.said |= {"first": "one", "second": "two"}
    looks(made, 6)
    assert len(world.done) == 1


def test_of_an_endpoint_without_an_adapter_the_revision_goes_back(world):
    made = watching(world, 1)
    world.said["desk"] = "Buy now."
    looks(made, 2)
    assert world.done == [("rollback", "desk", "")]


def test_what_was_never_right_is_no_reason_to_go_back(world):
    world.said["desk"] = "I do not know."
    watching(world, 8)
    assert world.done == []


def test_a_few_wrong_answers_are_none_of_his_business(world):
    made = watching(world, 1, wrong=0.6)
    world.said["second"] = "three"
    looks(made, 5)
    assert world.done == [] and world.reports[-1]["wrong"] == 0.5


def test_failures_are_told_and_left_to_the_scheduler(world, capsys):
    made = watching(world, 1)
    world.said["desk"] = ClusterError("desk answered HTTP 503: no replica")
    looks(made, 3)
    assert world.done == [] and (world.reports[-1]["failed"], world.reports[-1]["alarms"]) == (1, 2)
    assert "desk does not answer: desk answered HTTP 503" in capsys.readouterr().out


def test_slow_answers_get_one_replica_more_and_no_more_than_there_may_be(world):
    made = watching(world, 1, slow_s=1.0, calm=0)
    world.takes_s = 2.0
    looks(made, 8)
    assert world.done == [("scale", "assistant", 2)]


def test_where_nothing_was_before_it_is_an_alarm(world, monkeypatch):
    def refused(*_):
        raise RequestError("nothing was published as whole before that of first")

    monkeypatch.setattr(world, "rollback", refused)
    made = watching(world, 1)
    world.said |= {"first": "buy", "second": "buy"}
    looks(made, 2)
    assert (world.reports[-1]["repairs"], world.reports[-1]["alarms"]) == (0, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        None,
        [],
        {"canaries": []},
        {"canaries": [3]},
        {"canaries": CANARIES, "evry_s": 3},
        {"canaries": [{"of": "desk", "says": "x"}]},
        {"canaries": [{"of": "desk", "says": "x", "chat": "a", "post": {}}]},
        {"canaries": [{"of": "desk", "say": "x", "chat": "a"}]},
    ],
)
def test_settings_that_say_nothing_are_refused(settings):
    with pytest.raises(RequestError, match=r"watch.yaml: (canary 0: )?expected"):
        Watchman(settings)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"every_s": "soon"}, "every_s is a number of seconds above 0, not 'soon'"),
        ({"every_s": float("nan")}, "every_s is a number of seconds"),
        ({"timeout_s": 0}, "timeout_s is a number of seconds"),
        ({"slow_s": True}, "slow_s is a number of seconds"),
        ({"rounds": 0}, "rounds is a whole number from 1, not 0"),
        ({"calm": 1.5}, "calm is a whole number from 0"),
        ({"wrong": 2}, "wrong is a share above 0, up to 1"),
        ({"canaries": [{"of": "desk", "says": "(", "chat": "a"}]}, "canary 0: says is no regular expression"),
        ({"canaries": [{"of": "desk", "says": 3, "chat": "a"}]}, "canary 0: says is a text, not 3"),
    ],
)
def test_settings_that_would_fail_later_are_refused_by_name(more, words):
    with pytest.raises(RequestError) as refused:
        Watchman({"canaries": CANARIES, **more})
    assert str(refused.value).startswith("watch.yaml: ") and words in str(refused.value)


def test_a_file_that_is_no_yaml_is_refused_and_an_empty_one_too(tmp_path):
    file = tmp_path / "watch.yaml"
    for text, words in (("canaries: [", "is no YAML"), ("", "expected canaries")):
        file.write_text(text)
        with pytest.raises(RequestError, match=words):
            watchman.main(str(file))


def test_a_slow_endpoint_that_goes_just_then_is_an_alarm_and_the_watch_goes_on(world, monkeypatch, capsys):
    def gone(name):
        raise RequestError(f"there is no endpoint {name}")

    monkeypatch.setattr(world, "endpoint", gone)
    made = watching(world, slow_s=1.0)
    world.takes_s = 2.0
    looks(made, 3)
    assert world.done == [] and world.reports[-1]["rounds"] == 3 and world.reports[-1]["alarms"] > 0
    assert "there is no endpoint assistant" in capsys.readouterr().out


def test_an_app_that_answers_with_a_list_is_wrong_and_ends_no_watch(world, monkeypatch):
    monkeypatch.setattr(world, "post", lambda *_, **__: ["Lem"])
    made = watching(world, 1)
    assert world.reports[-1]["failed"] == 0 and made._count == 1
