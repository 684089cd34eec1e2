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


ROLE, ASKS, PRODUCER = "role: prefill", "prefill: {endpoint: b}", "{kv_transfer_config: {kv_role: kv_producer}}"


def split(part: str = "", config: str = "") -> str:
    kwargs = [f"engine_kwargs: {{vllm: {{kv_transfer_config: {config}}}}}"] if config else []
    return section(
        "serve", "{" + ", ".join(["model: {source: m}", "engine: vllm", *([part] if part else []), *kwargs]) + "}"
    )


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (section("serve", f"{{model: {{source: m}}, {ROLE}}}"), "serve.role", 'goes with "engine: vllm"'),
        (section("serve", f"{{model: {{source: m}}, {ASKS}}}"), "serve.prefill", 'goes with "engine: vllm"'),
        (section("serve", f"{{app: 'a:B', {ASKS}}}"), "serve.prefill", 'goes with "engine: vllm"'),
        (split(f"{ROLE}, {ASKS}"), "serve.prefill", 'leave "prefill" out'),
        (split(f"{ROLE}, adapters: [{{name: x, source: y}}]"), "serve.adapters", "loads the same when"),
        (split("prefill: {endpoint: a}"), "serve.prefill.endpoint", "names the workload itself"),
        (split(ROLE) + "slo: {ttft_p95: 1s}", "slo.ttft_p95", "use latency_p95"),
        (split(ROLE) + "hold_timeout: 1s", "hold_timeout", "nobody waits"),
        (split(ROLE) + "envs: {VLLM_NIXL_SIDE_CHANNEL_PORT: '1'}", "envs.VLLM_NIXL_SIDE_CHANNEL_PORT", "leave it out"),
        (split(ASKS) + "secrets: [VLLM_NIXL_SIDE_CHANNEL_HOST]", "secrets", "is set for each replica"),
        (split(ROLE, "{kv_role: kv_both}"), "kv_transfer_config.kv_role", 'is "kv_producer" here'),
        (split(ASKS, "{kv_role: kv_producer}"), "kv_transfer_config.kv_role", 'is "kv_consumer" here'),
        (split(ASKS, "{kv_connector: MooncakeConnector}"), "kv_connector", 'is "NixlConnector" here'),
        (split(ROLE, "{engine_id: one}"), "kv_transfer_config.engine_id", "each makes its own"),
        (split("", "{kv_connector: NixlConnector, kv_role: kv_both}"), "kv_connector", "prefill: {endpoint: NAME}"),
        (split("", "{kv_connector: P2pNcclConnector, kv_role: kv_both}"), "kv_connector", "OffloadingConnector"),
        (split("", "{kv_role: kv_producer}"), "kv_transfer_config.kv_role", 'Write "role: prefill"'),
        (split("", "{kv_role: kv_consumer}"), "kv_transfer_config.kv_role", 'Write "prefill: {endpoint: NAME}"'),
        (
            section("batch", "{model: m, input: {path: x}, engine_kwargs: {vllm: " + PRODUCER + "}}"),
            "batch.engine_kwargs.vllm.kv_transfer_config.kv_role",
            "nothing would be asked",
        ),
        (split("", "kv_producer"), "vllm.kv_transfer_config", "expected an object"),
    ],
)  # fmt: skip
def test_what_would_come_to_nothing_of_a_split_is_refused_with_what_to_write(text: str, where: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    [found] = caught.value.problems
    assert f'{where}": ' in str(found) and words in str(found)


@pytest.mark.parametrize(
    "text",
    [
        split(ROLE) + "slo: {latency_p95: 1s}\nreplicas: 0..4",
        split(ASKS) + "slo: {ttft_p95: 1s}",
        split(ROLE, "{kv_role: kv_producer, kv_connector_extra_config: {kv_lease_duration: 60}}"),
        split(ASKS, "{kv_load_failure_policy: fail}"),
        split("", "{kv_connector: OffloadingConnector, kv_role: kv_both}"),  # one engine has more room
    ],
)
def test_both_halves_of_a_split_are_endpoints_as_others_are(text: str) -> None:
    [spec] = load(text)
    serve = spec.dump()["serve"]
    assert serve["prefill"] in (None, {"endpoint": "b", "from_tokens": 512}) and serve["role"] in (None, "prefill")


def test_what_is_right_reaches_the_replica_as_it_was_written() -> None:
    kwargs = "engine_kwargs: {max_model_len: 9, vllm: {gpu_memory_utilization: 0.8}}"
    body = "{model: {source: m}, engine: vllm, parallelism: {tensor: 2}, " + kwargs + "}"
    [spec] = load(section("serve", body) + "resources: {accelerators: 'H100:2'}")
    serve = spec.dump()["serve"]
    assert serve["engine_kwargs"] == {"max_model_len": 9, "vllm": {"gpu_memory_utilization": 0.8}}
    assert serve["parallelism"] == {"tensor": 2, "pipeline": 1}
