"""A vLLM that says a prompt backwards: its names and calls as `vllm_engine.py` uses them, and no GPU.

With a `kv_transfer_config` it does what NixlConnector does: a producer keeps what it has read under numbers of blocks
and says where; a consumer asks for it there, by the address and not by the object, and goes on from what it gets. What
it does not get it reads itself, or gives up, by `kv_load_failure_policy`.
"""

import asyncio
import itertools
import os
import sys
import types
import uuid
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
    kv_transfer_config: object = None


@dataclass
class KVTransferConfig:
    """Of these an engine reads attributes: a dict in its place fails when it starts."""

    kv_connector: str | None = None
    kv_role: str | None = None
    kv_load_failure_policy: str = "fail"
    kv_connector_extra_config: dict = field(default_factory=dict)
    engine_id: str = field(default_factory=lambda: uuid.uuid4().hex)


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
    ignore_eos: bool = False
    extra_args: dict | None = None


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
    kv_transfer_params: dict | None = None


@dataclass
class Kept:
    """What a producer has read: `blocks` are freed once they are taken."""

    blocks: list
    tokens: list
    is_loud: bool


NETWORK = {}  # (host, port): the engine that answers there


@dataclass
class AsyncLLM:
    """`read`: how long the prompts were that it has read itself; `hold` is waited for before each token but the first,
    `reading` before a prompt is read, `fetching` before what another engine has kept is asked for."""

    arguments: AsyncEngineArgs
    aborted: list = field(default_factory=list)
    loras: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    read: list = field(default_factory=list)
    kept: dict = field(default_factory=dict)
    gives_up: bool = False
    errored: bool = False
    is_down: bool = False
    hold: asyncio.Event | None = None
    reading: asyncio.Event | None = None
    fetching: asyncio.Event | None = None

    @classmethod
    def from_engine_args(cls, arguments):
        made = cls(arguments)
        made.model_config = types.SimpleNamespace(max_model_len=arguments.max_model_len)
        made.config, made.not_taken, made.numbers = arguments.kv_transfer_config, {}, itertools.count(1)
        made.place = None
        if made.config is not None and made.config.kv_connector == "NixlConnector":
            made.place = os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"], int(os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"])
            assert made.place not in NETWORK, "Address already in use"
            NETWORK[made.place] = made
        return made

    async def generate(self, prompt, parameters, request_id, lora_request=None):
        self.asked.append((request_id, parameters, lora_request))
        told = (parameters.extra_args or {}).get("kv_transfer_params") or {}
        found = None
        if self.gives_up:
            yield RequestOutput([Completion("", [], "error")], True)
            return
        if told.get("do_remote_prefill") and self.place is not None:
            found = await self._fetch(told, request_id)
            if found is None and self.config.kv_load_failure_policy == "fail":
                yield RequestOutput([Completion("", [], "error")], True)
                return
        tokens, is_loud = prompt["prompt_token_ids"], bool(lora_request)
        if found is None:
            if self.reading is not None:
                await self.reading.wait()
            self.read.append(len(tokens))
        else:
            tokens, is_loud = found.tokens, found.is_loud
        said = list(reversed(tokens))[: parameters.max_tokens]
        for place, token in enumerate(said):
            if self.hold is not None and place:
                await self.hold.wait()
            is_last = place == len(said) - 1
            text = chr(token + 33)  # as the tokenizer of tiny_models numbers letters
            text = text.upper() if is_loud else text
            reason = "length" if is_last else None
            keeps = is_last and told.get("do_remote_decode") and self.place is not None
            more = self._keep(request_id, Kept([], list(tokens), is_loud)) if keeps else None
            yield RequestOutput([Completion(text, [token], reason)], is_last, len(tokens) if found else 4, more)

    def _keep(self, request_id, what):
        what.blocks = [next(self.numbers) for _ in what.tokens]
        self.kept[request_id] = what
        host, port = self.place
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": what.blocks,
            "remote_engine_id": self.config.engine_id,
            "remote_request_id": request_id,
            "remote_host": host,
            "remote_port": port,
        }

    async def _fetch(self, told, request_id):
        """What was kept there; None where nobody answers, or has it no more."""
        self.not_taken[request_id] = told
        if self.fetching is not None:
            await self.fetching.wait()
        return self._take(request_id)

    def _take(self, request_id):
        told = self.not_taken.pop(request_id)
        there = NETWORK.get((told["remote_host"], told["remote_port"]))
        if there is None or there.config.engine_id != told["remote_engine_id"]:
            return None
        what = there.kept.get(told["remote_request_id"])
        if what is None or what.blocks != told["remote_block_ids"]:
            return None
        return there.kept.pop(told["remote_request_id"])

    async def abort(self, request_id):
        self.aborted.append(request_id)
        if request_id in self.not_taken:  # the producer is told that nobody will come
            self._take(request_id)

    async def add_lora(self, request):
        self.loras[request.lora_int_id] = request
        return True

    async def remove_lora(self, number):
        del self.loras[number]
        return True

    def shutdown(self):
        self.is_down = True
        if self.place is not None:
            NETWORK.pop(self.place, None)


def modules():
    """What is in each module of vLLM, by name."""
    return {
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.sampling_params": {
            "RequestOutputKind": types.SimpleNamespace(DELTA="delta"),
            "StructuredOutputsParams": StructuredOutputsParams,
        },
        "vllm.config": {"KVTransferConfig": KVTransferConfig},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    }


def module(name, inside):
    made = types.ModuleType(name)
    made.__spec__ = types.SimpleNamespace(name=name)
    vars(made).update(inside)
    return made


def put_in(monkeypatch):
    """For one test, as if it were installed."""
    NETWORK.clear()
    for name in ("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT"):
        monkeypatch.setenv(name, "")  # what an engine sets is undone after the test
        monkeypatch.delenv(name)
    for name, inside in modules().items():
        monkeypatch.setitem(sys.modules, name, module(name, inside))
