"""Text that may be shown: whole characters, and no beginning of a stop text."""

import random

import pytest
import tiny_models

from workloads.inference.text import TextStream

TEXTS = ["plain words", "Grüße aus Köln", "日本語のテキスト", "🙂🙃👩‍👩‍👧 mixed ü ascii", "a\n\n b  c "]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.byte_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text


def test_half_a_character_at_the_end_is_shown_as_it_is(tokenizer):
    stream = TextStream(tokenizer)
    ids = tokenizer("aü")["input_ids"][:-1]
    assert [stream.push(token) for token in ids] == ["a", ""]
    assert stream.finish() == "\ufffd"


def test_bytes_that_are_no_character_do_not_hold_the_rest_back(tokenizer):
    stream = TextStream(tokenizer)
    half = tokenizer("ü")["input_ids"][0]
    text = "".join(stream.push(token) for token in [half] * 9 + tokenizer("abc")["input_ids"]) + stream.finish()
    assert text.endswith("abc")


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_text_never_shows_even_in_part_wherever_it_is_cut(tokenizer, seed):
    chance = random.Random(seed)
    stops = ("END", "ENNE", "ü!")
    text = "".join(chance.choice("ENDü!x ") for _ in range(40))
    stream, shown = TextStream(tokenizer, stops), ""
    for token in tokenizer(text)["input_ids"]:
        shown += stream.push(token)
        assert not any(stop in shown for stop in stops)
        if stream.stopped:
            break
    shown += stream.finish()
    ends = [text.index(stop) for stop in stops if stop in text]
    assert stream.stopped is bool(ends)
    assert text.startswith(shown)
    if not ends:
        assert shown == text
    else:  # the stop that is complete first ends it
        first = min((text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text)
        assert shown == text[: first[1]]
