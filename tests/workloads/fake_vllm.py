"""A vLLM that says a prompt backwards: its names and calls as `vllm_engine.py` uses them, and no GPU."""

import asyncio
import sys
import types
from dataclasses import dataclass, field


@dataclass
class AsyncEngineArgs:
    """Those of vLLM that a test passes; any other name is an error, as there."""

    model: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_lora: bool = False
    load_format: str = "auto"
    disable_log_stats: bool = False
    max_lora_rank: int = 16
    max_loras: int = 1
    distributed_executor_backend: str | None = None
    max_model_len: int = 64
    gpu_memory_utilization: float = 0.9
    speculative_config: dict | None = None


@dataclass
class SamplingParams:
    max_tokens: int
    output_kind: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list | None = None
    stop_token_ids: list | None = None
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict | None = None
    logprobs: int | None = None
    structured_outputs: object = None


@dataclass
class StructuredOutputsParams:
    json: object = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class Completion:
    text: str
    token_ids: list
    finish_reason: str | None = None
    logprobs: list | None = None


@dataclass
class RequestOutput:
    outputs: list
    finished: bool
    num_cached_tokens: int | None = 0


@dataclass
class AsyncLLM:
    arguments: AsyncEngineArgs
    aborted: list = field(default_factory=list)
    loras: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    errored: bool = False
    is_down: bool = False
    hold: asyncio.Event | None = None

    @classmethod
    def from_engine_args(cls, arguments):
        made = cls(arguments)
        made.model_config = types.SimpleNamespace(max_model_len=arguments.max_model_len)
        return made

    async def generate(self, prompt, parameters, request_id, lora_request=None):
        self.asked.append((request_id, parameters, lora_request))
        said = list(reversed(prompt["prompt_token_ids"]))[: parameters.max_tokens]
        for place, token in enumerate(said):
            if self.hold is not None and place:
                await self.hold.wait()
            is_last = place == len(said) - 1
            text = chr(token + 33)  # as the tokenizer of tiny_models numbers letters
            text = text.upper() if lora_request else text
            reason = "length" if is_last else None
            yield RequestOutput([Completion(text, [token], reason)], is_last, 4)

    async def abort(self, request_id):
        self.aborted.append(request_id)

    async def add_lora(self, request):
        self.loras[request.lora_int_id] = request
        return True

    async def remove_lora(self, number):
        del self.loras[number]
        return True

    def shutdown(self):
        self.is_down = True


def put_in(monkeypatch):
    """For one test, as if it were installed."""
    names = {
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.sampling_params": {
            "RequestOutputKind": types.SimpleNamespace(DELTA="delta"),
            "StructuredOutputsParams": StructuredOutputsParams,
        },
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    }
    for name, inside in names.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, name, module)
