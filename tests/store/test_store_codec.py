"""Every fact and decision survives the trip to JSON and back, exactly; anything else is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_records import any_entry, any_record

from llmsched import sanitize
from llmsched.core import facts
from llmsched.core.configuration import Configuration, Queue, Quota
from llmsched.core.decisions import Launch
from llmsched.core.workload import Placed, Workload
from llmsched.executors import port, wire
from llmsched.store.codec import DECISIONS, ENTRIES, FACTS, CodecError, from_data, to_data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_entry())
def test_every_fact_and_decision_round_trips(entry):
    again = ENTRIES.load(ENTRIES.tag(entry), ENTRIES.dump(entry))
    assert again == entry
    assert repr(again) == repr(entry)  # 1 stays 1 and 1.0 stays 1.0: a replay must hash the same


@pytest.mark.parametrize("cls", FACTS + DECISIONS, ids=lambda cls: cls.__name__)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_each_class_has_a_spelling(cls, data):
    entry = data.draw(any_record(cls))
    assert ENTRIES.load(cls.__name__, ENTRIES.dump(entry)) == entry


def test_a_field_an_older_writer_did_not_know_takes_its_default():
    data = to_data(Queue, Queue("lab", quotas=(("A100", Quota(8000)),)))
    del data["evictable"]
    assert from_data(Queue, json.loads(json.dumps(data))).evictable == "yes"


def test_a_field_of_a_newer_writer_is_refused():
    with pytest.raises(CodecError, match="unknown fields: colour"):
        ENTRIES.load("Tick", '{"at": 1.0, "colour": "red"}')


def test_a_missing_required_field_is_refused():
    with pytest.raises(CodecError, match="Bound lacks gang"):
        ENTRIES.load("Bound", '{"at": 1.0, "attempt": 1}')


def test_a_wrong_type_is_refused_and_says_where():
    with pytest.raises(CodecError) as raised:
        ENTRIES.load("Bound", '{"at": 1.0, "gang": "a/0", "attempt": "one"}')
    assert "Bound.attempt" in str(raised.value)
    assert "expected int" in str(raised.value)


def test_an_unknown_record_is_refused():
    with pytest.raises(CodecError, match='unknown record "Rumour"'):
        ENTRIES.load("Rumour", "{}")


def test_records_nested_in_tuples_come_back_as_records():
    entry = Launch("a/0", 1, (Placed("workers", "n1", 0), Placed("workers", "n2", 0, gpu_index=1)))
    again = ENTRIES.load("Launch", ENTRIES.dump(entry))
    assert again.placement[1].gpu_index == 1


def test_configuration_of_the_default_cluster_round_trips():
    entry = facts.Configured(1.0, Configuration())
    assert ENTRIES.load("Configured", ENTRIES.dump(entry)) == entry


def test_a_parcel_keeps_its_letters():
    entry = facts.Submitted(1.0, Workload("a", "a", "task", (), parcel='{"name": "größe \u2028"}'))
    assert ENTRIES.load("Submitted", ENTRIES.dump(entry)) == entry


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_crosses_the_pipe_is_one_line_and_round_trips(data):
    op = data.draw(st.sampled_from(sorted(wire.ORDERS)))
    order = data.draw(any_record(wire.ORDERS[op]))
    line = wire.encode_order(op, order)
    assert line.count(b"\n") == 1
    assert len(line.decode().splitlines()) == 1
    assert wire.decode_order(line) == (op, order)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_answer_of_the_bridge_arrives_made_valid(data):
    cls = data.draw(st.sampled_from(sorted(wire.ANSWERS.values(), key=lambda cls: cls.__name__)))
    answer = data.draw(any_record(cls))
    assert wire.decode_answer(wire.encode_answer(answer)) == sanitize.record(answer)


def test_a_line_that_is_no_message_is_an_error_that_does_not_show_it():
    line = wire.encode_order(
        "launch", port.LaunchOrder("a", "a/0", 1, 1, "task", (), {}, "/s", envs={"KEY": "hunter2"})
    )
    with pytest.raises(Exception) as raised:
        wire.decode_order(line.replace(b'"epoch":1', b'"epoch":"1"'))
    assert "hunter2" not in str(raised.value)
