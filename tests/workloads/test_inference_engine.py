"""The text engine on a tiny random model: what a batch says is what each would say alone."""

import asyncio
import json
import shutil
import threading
from contextlib import aclosing

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from waiting import PATIENCE_S

from llmsched.data.parameters import RequestError, Sampling
from workloads.inference import stuck
from workloads.inference.adapters import AdapterError
from workloads.inference.engine import Settings, TransformersEngine

CPU = torch.device("cpu")
PROMPTS = ["hello", "a much longer prompt that goes on for quite a while, really", "x", "Grüße aus Köln", "12345 67"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder):
    made = TransformersEngine(folder, Settings(), CPU)
    yield made
    made.close()


def tokens(engine, text):
    return engine.tokenizer(text)["input_ids"]


async def say(engine, text, adapter=None, **sampling):
    prompt = tokens(engine, text) if isinstance(text, str) else text
    sampling = Sampling(**{"max_tokens": 24, "temperature": 0.0, **sampling})
    pieces = []
    async with aclosing(engine.generate(prompt, sampling, adapter)) as stream:
        async for piece in stream:
            pieces.append(piece)
    return pieces


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def by_hand(folder, engine, text, count):
    """Greedy tokens from the model alone, without any cache."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokens(engine, text)
    begin = len(ids)
    with torch.inference_mode():
        while len(ids) - begin < count and ids[-1] != 256:
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return engine.tokenizer.decode(ids[begin:], skip_special_tokens=True)


def test_greedy_is_what_the_model_says_by_hand_alone_and_in_a_batch(folder, engine):
    async def main():
        alone = [text_of(await say(engine, prompt)) for prompt in PROMPTS]
        together = [text_of(p) for p in await asyncio.gather(*(say(engine, prompt) for prompt in PROMPTS))]
        return alone, together

    alone, together = asyncio.run(main())
    assert together == alone == [by_hand(folder, engine, prompt, 24) for prompt in PROMPTS]
    assert len(set(alone)) > 3  # the model does tell prompts apart


def test_one_that_joins_late_and_one_that_leaves_early_change_nothing_for_the_others(folder, engine):
    async def main():
        first = asyncio.create_task(say(engine, PROMPTS[1], max_tokens=60))
        short = asyncio.create_task(say(engine, PROMPTS[0], max_tokens=3))
        await short
        late = asyncio.create_task(say(engine, PROMPTS[3], max_tokens=30))
        return text_of(await first), text_of(await late)

    assert asyncio.run(main()) == (by_hand(folder, engine, PROMPTS[1], 60), by_hand(folder, engine, PROMPTS[3], 30))


def test_a_sliding_window_holds_in_a_batch_too(tmp_path):
    folder = tiny_models.llama(tmp_path, sliding_window=8)
    engine = TransformersEngine(folder, Settings(), CPU)

    async def main():
        return [text_of(p) for p in await asyncio.gather(*(say(engine, prompt) for prompt in PROMPTS))]

    try:
        assert asyncio.run(main()) == [by_hand(folder, engine, prompt, 24) for prompt in PROMPTS]
    finally:
        engine.close()


def test_a_prompt_read_in_pieces_says_the_same(folder, engine, monkeypatch):
    monkeypatch.setattr("workloads.inference.engine.PREFILL_TOKENS", 7)
    assert text_of(asyncio.run(say(engine, PROMPTS[1]))) == by_hand(folder, engine, PROMPTS[1], 24)


def test_fifty_prompts_are_answered_as_generate_does_read_anew_and_with_beginnings_that_are_known(folder):
    words = ["the cat", "sat on", "a mat", "and saw", "two birds"]
    prompts = [" ".join([words[n % 5], words[n // 5 % 5]] * (1 + n // 25) + [str(n)]) for n in range(50)]
    engine, model = TransformersEngine(folder, Settings(), CPU), AutoModelForCausalLM.from_pretrained(folder)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([tokens(engine, prompt)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        expected.append(engine.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    async def main():
        return [await asyncio.gather(*(say(engine, prompt, max_tokens=8) for prompt in prompts)) for _ in range(2)]

    try:
        anew, again = asyncio.run(main())
    finally:
        engine.close()
    assert [text_of(pieces) for pieces in anew] == [text_of(pieces) for pieces in again] == expected
    assert len(set(expected)) > 30
    assert all(
        pieces[0].cached_tokens == len(tokens(engine, prompt)) - 1
        for pieces, prompt in zip(again, prompts, strict=True)
    )


def test_a_dialogue_goes_on_with_what_was_read_and_said(folder):
    async def main(engine):
        prompt = tokens(engine, "hello there")
        first = await say(engine, prompt, max_tokens=12, logprobs=0)
        answer = [said.token for piece in first for said in piece.said]
        return answer, first, await say(engine, [*prompt, *answer, *tokens(engine, " and then?")])

    engine, without = (TransformersEngine(folder, Settings(enable_prefix_caching=each), CPU) for each in (True, False))
    try:
        answer, first, second = asyncio.run(main(engine))
        assert (first[-1].cached_tokens, second[-1].cached_tokens) == (0, len("hello there") + 11)
        prompt = [*tokens(engine, "hello there"), *answer, *tokens(engine, " and then?")]
        anew = asyncio.run(say(without, prompt))
        assert (text_of(anew), anew[-1].cached_tokens) == (text_of(second), 0)
    finally:
        engine.close()
        without.close()


def test_three_hundred_clients_that_vanish_cost_no_step_beyond_the_one_under_way(folder):
    engine = TransformersEngine(folder, Settings(max_num_seqs=32, max_waiting=300), CPU)
    steps = 0

    def counted(*args, step=engine._decoder.step):
        nonlocal steps
        steps += 1
        return step(*args)

    engine._decoder.step = counted

    async def main():
        asked = Sampling(max_tokens=200, temperature=0.0, logit_bias=((256, -100.0),))  # none ends by itself
        streams = [engine.generate(tokens(engine, f"hello {n}"), asked, None) for n in range(300)]
        reading = [asyncio.create_task(anext(stream)) for stream in streams]
        while sum(map(asyncio.Task.done, reading)) < 32:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
        before = steps
        assert (await say(engine, "x", max_tokens=2))[-1].completion_tokens == 2  # it has its place
        return steps - before

    try:
        assert asyncio.run(main()) <= 2  # the one under way, and its own
        assert not engine._waiting and not engine._ready
    finally:
        engine.close()


def test_a_seed_repeats_a_draw_whoever_shares_the_batch(engine):
    async def main():
        alone = text_of(await say(engine, "once", temperature=1.3, seed=7))
        crowd = await asyncio.gather(
            say(engine, "once", temperature=1.3, seed=7),
            say(engine, "other", temperature=1.0, seed=1),
            say(engine, "once", temperature=1.3, seed=8),
        )
        return alone, *(text_of(pieces) for pieces in crowd)

    alone, same, _, another = asyncio.run(main())
    assert alone == same != another


def test_a_tiny_top_p_is_greedy(engine):
    async def main():
        return text_of(await say(engine, "p", temperature=1.0, top_p=0.0)), text_of(await say(engine, "p"))

    drawn, greedy = asyncio.run(main())
    assert drawn == greedy


def test_pieces_add_up_count_up_and_end_with_a_reason(engine):
    pieces = asyncio.run(say(engine, "hello", max_tokens=10))
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == (5, 10)
    assert [p.completion_tokens for p in pieces] == sorted(p.completion_tokens for p in pieces)


def test_stops_at_a_stop_text_and_leaves_it_out(engine):
    async def main():
        whole = text_of(await say(engine, "hello", max_tokens=40))
        stop = whole[10:13]
        return whole, stop, await say(engine, "hello", max_tokens=40, stop=(stop,))

    whole, stop, pieces = asyncio.run(main())
    assert text_of(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_refuses_when_too_many_wait_and_serves_again_after(folder):
    engine = TransformersEngine(folder, Settings(max_num_seqs=1, max_waiting=2), CPU)

    async def main():
        tasks = [asyncio.create_task(say(engine, "hello", max_tokens=200)) for _ in range(8)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [each for each in done if isinstance(each, RequestError)]
        assert refused and {each.status for each in refused} == {429}
        assert len(done) - len(refused) >= 2
        return text_of(await say(engine, "hello"))

    try:
        assert asyncio.run(main())
    finally:
        engine.close()


def test_closing_the_stream_frees_its_place_at_the_next_step(folder):
    engine = TransformersEngine(folder, Settings(max_num_seqs=1), CPU)

    async def main():
        endless = engine.generate(tokens(engine, "hello"), Sampling(max_tokens=10_000, temperature=0.0), None)
        await anext(endless)
        waiting = asyncio.create_task(say(engine, "x", max_tokens=3))
        await endless.aclose()
        async with asyncio.timeout(PATIENCE_S):
            await waiting

    try:
        asyncio.run(main())
        assert not engine._waiting
    finally:
        engine.close()


def test_closing_the_engine_ends_what_it_was_doing_with_a_word(folder):
    engine = TransformersEngine(folder, Settings(), CPU)

    async def main():
        stream = engine.generate(tokens(engine, "hello"), Sampling(max_tokens=10_000, temperature=0.0), None)
        await anext(stream)
        await asyncio.to_thread(engine.close)
        with pytest.raises(RequestError, match="stopping"):
            async for _ in stream:
                pass

    asyncio.run(main())
    with pytest.raises(RuntimeError):
        engine.check()


def test_a_decode_thread_that_hangs_is_sick_and_one_that_has_nothing_to_do_is_not(folder, monkeypatch):
    """Before, its replica was healthy and answered nobody."""
    monkeypatch.setattr(stuck, "ASLEEP_S", 0.05)
    engine = TransformersEngine(folder, Settings(), CPU)
    begun, goes_on, step = threading.Event(), threading.Event(), engine._decoder.step

    def hangs(*args):
        begun.set()
        goes_on.wait()
        return step(*args)

    async def main():
        engine.check()
        monkeypatch.setattr(engine._decoder, "step", hangs)
        stream = engine.generate(tokens(engine, "hello"), Sampling(max_tokens=4, temperature=0.0), None)
        await anext(stream)
        await asyncio.to_thread(begun.wait)
        engine.check()
        with pytest.raises(RuntimeError, match="does nothing"):
            while True:
                await asyncio.sleep(0.01)
                engine.check()
        goes_on.set()
        async for _ in stream:
            pass
        engine.check()

    try:
        asyncio.run(main())
    finally:
        goes_on.set()
        engine.close()


# --- adapters ---------------------------------------------------------------------------------------------------


def merged_by_hand(base, adapter, engine, text, count, into):
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    model.save_pretrained(into)
    return by_hand(into, engine, text, count)


def test_adapters_are_loaded_while_it_serves_and_each_says_its_own(folder, tmp_path):
    engine = TransformersEngine(folder, Settings(), CPU)
    adapters = {name: tiny_models.lora(tmp_path / name, folder, seed=n) for n, name in enumerate(["sql", "law"])}

    async def main():
        base_alone = text_of(await say(engine, "hello", max_tokens=40))
        running = asyncio.create_task(say(engine, "hello", max_tokens=40))
        for name, where in adapters.items():
            await engine.load_adapter(name, where)
        assert text_of(await running) == base_alone  # it was decoding when they came
        mixed = await asyncio.gather(*(say(engine, "hello", adapter=name) for name in ("sql", None, "law", "sql")))
        return base_alone, [text_of(pieces) for pieces in mixed]

    try:
        base, (sql, plain, law, sql_too) = asyncio.run(main())
    finally:
        engine.close()
    assert base.startswith(plain)
    assert sql == sql_too == merged_by_hand(folder, adapters["sql"], engine, "hello", 24, tmp_path / "m1")
    assert law == merged_by_hand(folder, adapters["law"], engine, "hello", 24, tmp_path / "m2")
    assert len({sql, law, plain}) == 3


@pytest.mark.parametrize(("more", "batches"), [({}, 1), ({"use_dora": True}, 2)])
def test_rows_of_adapters_share_a_batch_where_peft_can_mix_them(folder, tmp_path, more, batches):
    engine = TransformersEngine(folder, Settings(), CPU)
    plain, other = (
        tiny_models.lora(tmp_path / "a", folder, seed=1),
        tiny_models.lora(tmp_path / "b", folder, seed=2, **more),
    )
    seen = 0

    def counted(*args, step=engine._decoder.step):
        nonlocal seen
        seen = max(seen, len(engine._batches))
        return step(*args)

    engine._decoder.step = counted

    async def main():
        await engine.load_adapter("a", plain)
        await engine.load_adapter("b", other)
        alone = [text_of(await say(engine, "hello there", adapter=name)) for name in ("a", "b", None)]
        mixed = await asyncio.gather(*(say(engine, "hello there", adapter=name) for name in ("a", "b", None)))
        return alone, [text_of(pieces) for pieces in mixed]

    try:
        alone, mixed = asyncio.run(main())
    finally:
        engine.close()
    assert alone == mixed and len(set(mixed)) == 3
    assert seen == batches


def test_an_adapter_is_replaced_under_its_name(folder, tmp_path):
    engine = TransformersEngine(folder, Settings(), CPU)
    old, new = (tiny_models.lora(tmp_path / str(n), folder, seed=n) for n in (1, 2))

    async def main():
        await engine.load_adapter("sql", old)
        before = text_of(await say(engine, "hello", adapter="sql"))
        await engine.load_adapter("sql", new)
        return before, text_of(await say(engine, "hello", adapter="sql"))

    try:
        before, after = asyncio.run(main())
        assert before != after == merged_by_hand(folder, new, engine, "hello", 24, tmp_path / "m")
        assert list(engine._adapters._peft.peft_config) == [engine._names["sql"]]  # the old one is gone
        assert list(engine._prefixes._roots) == [engine._names["sql"]]  # and so is what it has read
    finally:
        engine.close()


def _without_weights(where):
    (where / "adapter_model.safetensors").unlink()


def _pickled(where):
    (where / "adapter_model.safetensors").rename(where / "adapter_model.bin")


def _damaged(where):
    (where / "adapter_model.safetensors").write_bytes(b"\x10\x00\x00\x00 not weights")


def _other_type(where):
    config = json.loads((where / "adapter_config.json").read_text())
    (where / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))


def _other_layers(where):
    weights = load_file(where / "adapter_model.safetensors")
    save_file({k.replace("layers.1.", "layers.9."): v for k, v in weights.items()}, where / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_weights, "no adapter_model.safetensors"),
        (_pickled, "pickled"),
        (_damaged, "damaged"),
        (_other_type, "IA3"),
        (_other_layers, "no layer model.layers.9"),
        (shutil.rmtree, "not a PEFT adapter"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_and_the_base_serves_on(engine, folder, tmp_path, spoil, message):
    where = tiny_models.lora(tmp_path / "a", folder, seed=1)
    spoil(where)

    async def main():
        with pytest.raises(AdapterError, match=message):
            await engine.load_adapter("bad", where)
        with pytest.raises(RequestError, match="not loaded"):
            await say(engine, "hello", adapter="bad")
        assert text_of(await say(engine, "hello"))

    asyncio.run(main())


def test_an_adapter_of_another_size_is_refused_with_both_sizes(engine, tmp_path):
    other = tiny_models.llama(tmp_path / "other", hidden=64)
    where = tiny_models.lora(tmp_path / "a", other, seed=1)
    with pytest.raises(AdapterError, match="32 inputs here, 64 in it"):
        asyncio.run(engine.load_adapter("bad", where))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_modl_len": 1},
        {"max_model_len": 0},
        {"dtype": "int3"},
        {"max_num_seqs": "4"},
        {"prefix_cache_mib": 0},
        {"num_speculative_tokens": -1},
        {"enable_prefix_caching": 1},
    ],
)
def test_engine_kwargs_that_mean_nothing_are_refused(kwargs):
    with pytest.raises(ValueError, match="engine_kwargs"):
        Settings.of(kwargs)


def test_a_context_beyond_the_models_own_is_refused(folder):
    with pytest.raises(ValueError, match="256"):
        TransformersEngine(folder, Settings(max_model_len=512), CPU)
