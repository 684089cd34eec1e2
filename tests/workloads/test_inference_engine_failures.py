"""What fails while a batch is answered: whom it concerns, and who is answered all the same."""

import asyncio

import pytest
import tiny_models
import torch
from test_inference_engine import CPU, say, text_of

from llmsched.data.parameters import RequestError
from workloads.inference.engine import Settings, TransformersEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.llama(tmp_path_factory.mktemp("llama"))


def test_a_step_that_fails_fails_its_requests_and_no_other(folder, monkeypatch):
    engine = TransformersEngine(folder, Settings(), CPU)
    step = engine._decoder.step

    def out_of_memory(*args):
        monkeypatch.setattr(engine._decoder, "step", step)
        raise MemoryError("no room")

    async def main():
        expected = text_of(await say(engine, "hello"))
        monkeypatch.setattr(engine._decoder, "step", out_of_memory)
        with pytest.raises(RequestError, match="no room"):
            await say(engine, "hello")
        assert text_of(await say(engine, "hello")) == expected

    try:
        asyncio.run(main())
    finally:
        engine.close()


class BreaksOff:
    """A schema that turns out impossible at its third token, as one that grows too large for llguidance does."""

    def __init__(self):
        self.left = 2

    def mask(self):
        return torch.ones(1, dtype=torch.bool)

    def take(self, token):
        if not self.left:
            raise RequestError("The schema cannot be used: too large", code="invalid_schema")
        self.left -= 1


def test_a_schema_that_breaks_off_ends_its_own_answer_and_no_other_of_the_batch(folder, monkeypatch):
    engine = TransformersEngine(folder, Settings(), CPU)

    async def main():
        alone = text_of(await say(engine, "hello"))
        monkeypatch.setattr(engine._grammars, "begin", lambda schema: BreaksOff())
        others = [say(engine, "hello") for _ in range(3)]
        *answers, refused = await asyncio.gather(*others, say(engine, "x", schema="{}"), return_exceptions=True)
        assert isinstance(refused, RequestError) and refused.status == 400 and "too large" in refused.message
        assert [text_of(pieces) for pieces in answers] == [alone] * 3

    try:
        asyncio.run(main())
    finally:
        engine.close()


def test_a_schema_without_an_end_is_refused_in_one_line(folder):
    engine = TransformersEngine(folder, Settings(), CPU)
    try:
        with pytest.raises(RequestError, match="The schema cannot be used") as refused:
            asyncio.run(say(engine, "hello", schema='{"$ref": "#"}'))
        assert refused.value.status == 400 and "\n" not in refused.value.message
    finally:
        engine.close()
