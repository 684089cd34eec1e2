"""Models that are larger than a GPU: what a spec may say of vLLM, and where a mistake is shown."""

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load


def section(name: str, body: str) -> str:
    return f"name: a\nkind: {name}\n{name}: {body}\n"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (section("serve", "{model: {source: m}, parallelism: {tensor: 2}}"), "3:42", 'goes with "engine: vllm"'),
        (
            section("serve", "{model: {source: m}, engine: vllm, engine_kwargs: {vllm: {gpu_memory_utilisation: 1}}}"),
            "3:65",
            'did you mean "gpu_memory_utilization"',
        ),
        (
            section("serve", "{model: {source: m}, engine_kwargs: {vllm: {swap_space: 1}}}"),
            "3:51",
            'goes with "engine: vllm"',
        ),
        (section("serve", "{app: 'a:B', engine: vllm}"), "3:29", 'goes with "model" and "task: causal-lm"'),
        (
            section("serve", "{model: {source: m}, engine: vllm, parallelism: {tensor: 4, pipeline: 2}}")
            + "resources: {accelerators: ['H100:8', 'A100:4']}",
            "3:56",
            'is tensor 4 x pipeline 2, so a replica needs 8 GPUs: write "TYPE:8" in resources.accelerators, not A100:4',
        ),
        (
            section("serve", "{model: {source: m}, engine: vllm, parallelism: {tensor: 2}}"),
            "3:56",
            "not none",
        ),
    ],
)
def test_bad_input_is_refused_with_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text, "a.yaml")
    [found] = [problem for problem in caught.value.problems if words in str(problem)]
    assert found.where == f"a.yaml:{place}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{kv_connector: NixlConnector, kv_role: kv_both}", ["NixlConnector"]),
        ("{kv_connector: P2pNcclConnector, kv_role: kv_producer}", ["P2pNcclConnector", "kv_producer"]),
        ("{kv_connector: OffloadingConnector, kv_role: kv_both}", []),  # one engine has more room
    ],
)
def test_prefill_and_decode_on_engines_of_their_own_are_not_supported_yet(given: str, said: list[str]) -> None:
    kwargs = "engine_kwargs: {vllm: {kv_transfer_config: " + given + "}}"
    text = section("serve", "{model: {source: m}, engine: vllm, " + kwargs + "}")
    if not said:
        assert load(text)
        return
    with pytest.raises(SpecError) as caught:
        load(text)
    assert [problem.code for problem in caught.value.problems] == ["not_supported_yet"] * len(said)
    assert all(word in str(caught.value) for word in said)


def test_what_is_right_reaches_the_replica_as_it_was_written() -> None:
    kwargs = "engine_kwargs: {max_model_len: 9, vllm: {gpu_memory_utilization: 0.8}}"
    body = "{model: {source: m}, engine: vllm, parallelism: {tensor: 2}, " + kwargs + "}"
    [spec] = load(section("serve", body) + "resources: {accelerators: 'H100:2'}")
    serve = spec.dump()["serve"]
    assert serve["engine_kwargs"] == {"max_model_len": 9, "vllm": {"gpu_memory_utilization": 0.8}}
    assert serve["parallelism"] == {"tensor": 2, "pipeline": 1}
