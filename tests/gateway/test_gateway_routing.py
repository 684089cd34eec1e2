"""The routing policies, on candidates that are plain records."""

import collections
import os
import string
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.gateway.claim import Claim
from llmsched.policies.routing import NAMES, Ask, named
from llmsched.policies.routing.text_tree import TextTree
from llmsched.policies.routing.work import ANSWER_WEIGHT, AnswerLengths, limit_of, prompt_text, tokens_of


@dataclass
class Busy:
    name: str
    ongoing: int = 0
    tokens: int = 0


def chosen(policy, replicas, times, ask=None):
    return collections.Counter(policy.choose(replicas, ask or Ask({}))[0].name for _ in range(times))


def prompt(text, session=""):
    return Ask({"prompt": text}, text, session)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_takes_the_only_one(name):
    assert named(name, seed=1).choose([Busy("a", 9)], prompt("x", "s"))[0].name == "a"


def test_power_of_two_never_takes_the_busiest_and_draws_from_all():
    replicas = [Busy("a", 3), Busy("b", 0), Busy("c", 1)]
    counts = chosen(named("power-of-two", seed=1), replicas, 3000)
    assert counts["a"] == 0
    assert 1800 < counts["b"] < 2200  # two of the three pairs hold b


def test_power_of_two_repeats_under_one_seed():
    replicas = [Busy(str(n)) for n in range(8)]
    assert chosen(named("power-of-two", 5), replicas, 50) == chosen(named("power-of-two", 5), replicas, 50)


def test_round_robin_takes_each_in_turn():
    assert chosen(named("round-robin", 0), [Busy("a", 5), Busy("b")], 10) == {"a": 5, "b": 5}


def test_least_tokens_looks_at_the_work_not_at_the_number_of_requests():
    assert named("least-tokens", 0).choose([Busy("a", 1, 4000), Busy("b", 3, 90)], Ask({}))[0].name == "b"


# --- the same beginning -----------------------------------------------------------------------------------------------


def test_prefix_cache_returns_to_the_replica_that_saw_the_beginning_and_knows_what_is_left_to_read():
    policy = named("prefix-cache", 3)
    replicas = [Busy(str(n)) for n in range(8)]
    system = "long " * 200
    first, unread = policy.choose(replicas, prompt(system + "1 of"))
    assert unread == tokens_of(system + "1 of")
    for question in ("2", "3 of it", "4 of all of it"):
        assert policy.choose(replicas, prompt(system + question)) == (first, tokens_of(question))


def test_prefix_cache_reads_a_beginning_elsewhere_when_waiting_for_it_takes_longer():
    policy = named("prefix-cache", 3)
    replicas = [Busy(str(n)) for n in range(4)]
    text = "the same " * 100
    warm, _ = policy.choose(replicas, prompt(text))
    warm.tokens = tokens_of(text) - 10
    assert policy.choose(replicas, prompt(text))[0] is warm
    warm.tokens = tokens_of(text) + 10
    second, unread = policy.choose(replicas, prompt(text))
    assert second is not warm and unread == tokens_of(text)
    warm.tokens = second.tokens = 100
    assert policy.choose(replicas, prompt(text))[0] in (warm, second)  # now there are two that know it


def test_prefix_cache_spreads_prompts_that_have_little_in_common():
    policy, replicas = named("prefix-cache", 3), [Busy(str(n)) for n in range(4)]
    counts = collections.Counter(policy.choose(replicas, prompt(f"system: You help. {n}"))[0].name for n in range(400))
    assert min(counts.values()) > 60


texts = st.lists(st.tuples(st.sampled_from("xyz"), st.text("ab", max_size=7)), max_size=25)


@given(texts, st.sampled_from([5, 10_000]))
def test_the_tree_knows_who_saw_which_beginning_and_never_grows_beyond_its_bound(given_texts, most):
    tree, all_of = TextTree(most), []
    for name, text in given_texts:
        found = tree.seen(text)
        for each in "xyz":
            longest = max((len(os.path.commonprefix([text, other])) for of, other in all_of if of == each), default=0)
            assert found.get(each, 0) == longest if most == 10_000 else found.get(each, 0) <= longest
        tree.saw(name, text, "xyz")
        all_of.append((name, text))
        assert tree.size == sum(len(edge.text) for edge in tree._by_use) <= most
        assert tree.seen(text).get(name, 0) == min(len(text), most)


def test_the_tree_forgets_replicas_that_are_gone():
    tree = TextTree(100)
    for number in range(100):
        tree.saw(f"replica-{number}", "hello", {f"replica-{number}"})
    assert len(tree.seen("hello")) < 15


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_keeps_its_replica_and_sessions_spread():
    policy, replicas = named("session-affinity", 0), [Busy(str(n)) for n in range(8)]
    of_session = {each: policy.choose(replicas, prompt("", each))[0].name for each in string.ascii_letters}
    assert len(set(of_session.values())) == 8
    assert all(policy.choose(replicas, prompt("", each))[0].name == name for each, name in of_session.items())


def test_only_sessions_of_a_replica_that_goes_move():
    policy, replicas = named("session-affinity", 0), [Busy(str(n)) for n in range(8)]
    before = {each: policy.choose(replicas, prompt("", each))[0].name for each in string.ascii_letters}
    after = {each: policy.choose(replicas[1:], prompt("", each))[0].name for each in string.ascii_letters}
    assert {each for each in before if before[each] != after[each]} == {s for s, name in before.items() if name == "0"}


def test_a_session_goes_elsewhere_while_its_replica_is_much_busier_than_others():
    policy, replicas = named("session-affinity", 0), [Busy(str(n)) for n in range(4)]
    own, _ = policy.choose(replicas, prompt("", "s"))
    own.ongoing = 1
    assert policy.choose(replicas, prompt("", "s"))[0] is own
    own.ongoing = 9
    second, _ = policy.choose(replicas, prompt("", "s"))
    assert second is not own
    own.ongoing = 0
    assert policy.choose(replicas, prompt("", "s"))[0] is own


# --- work -------------------------------------------------------------------------------------------------------------


def test_how_long_an_answer_becomes_is_learnt_for_each_size_of_its_limit():
    lengths = AnswerLengths()
    assert (lengths.expect(None), lengths.expect(20)) == (256, 20)
    for _ in range(100):
        lengths.saw(60, 12)
        lengths.saw(1000, 700)
    assert (lengths.expect(50), lengths.expect(1000), lengths.expect(600)) == (12, 700, 600)
    assert lengths.expect(None) == 256


@pytest.mark.parametrize(
    ("body", "text", "limit"),
    [
        ({"prompt": "a b", "max_tokens": 7}, "a b", 7),
        ({"prompt": [1, 22], "max_completion_tokens": 9}, "1 22", 9),
        ({"input": ["a", "b"], "max_tokens": "7"}, "a b", None),
        ({"messages": [{"role": "user", "content": "hi"}, 3], "max_tokens": -1}, "user:hi", None),
        ({"messages": "hi", "max_tokens": True}, "", None),
    ],
)
def test_the_words_and_the_limit_of_a_request_are_read_whatever_it_holds(body, text, limit):
    assert (prompt_text(body), limit_of(body)) == (text, limit)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.integers(0, 9), st.booleans()), max_size=20))
def test_claims_that_end_leave_nothing_behind_in_whatever_order(requests):
    on = Busy("a")
    claims = []
    for unread, expected, said, ends in requests:
        claim = Claim(on, unread, expected)
        for _ in range(said):
            claim.said()
        if ends:
            claim.end()
            claim.end()
            claim.said()
        claims.append(claim)
        assert on.ongoing >= 0 and on.tokens >= 0
    for claim in reversed(claims):
        claim.end()
    assert (on.ongoing, on.tokens) == (0, 0)


def test_a_claim_goes_down_as_the_answer_comes_and_never_below_a_token():
    on = Busy("a")
    claim = Claim(on, unread=100, answer=2)
    seen = [on.tokens]
    for _ in range(3):
        claim.said()
        seen.append(on.tokens)
    assert seen == [100 + 2 * ANSWER_WEIGHT, ANSWER_WEIGHT, ANSWER_WEIGHT, ANSWER_WEIGHT]
