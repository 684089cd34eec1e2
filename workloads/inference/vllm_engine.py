"""The text engine on vLLM, for GPU machines that have it. Same port as `engine.TransformersEngine`.

Written against vLLM's AsyncLLM; it has not been run on a GPU yet, and nothing imports it unless the spec asks for it or
vLLM and CUDA are both there.
"""

from __future__ import annotations

import itertools
import sys
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from llmsched.data.parameters import TRANSFER, RequestError, Sampling, Usual
from workloads.inference import kv_transfer
from workloads.inference.engine import Piece
from workloads.inference.sampling import Said

# What llmsched sets itself, or never allows: code that comes with a model, weights that are not safetensors.
_OURS = {"model", "tokenizer", "tensor_parallel_size", "pipeline_parallel_size", "enable_lora"}
_NEVER = {"load_format", "trust_remote_code"}


# What is asked of one engine, so that another one goes on; it fills in the rest.
_KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    **dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")),
}
_FAILED = ("error", "abort")  # reasons for which vLLM ends a request that has no whole answer


class _GivenUp(RuntimeError):
    """vLLM ended a request before its answer was whole."""


class VllmEngine:
    """`kwargs` are vLLM's engine arguments, more of them under "vllm"; `parallelism` {"tensor", "pipeline"}; `role`:
    "kv_producer" reads prompts for other engines, "kv_consumer" may go on from what one has read. Raises ValueError."""

    def __init__(self, folder: Path, kwargs: Mapping[str, Any], parallelism: Mapping[str, int], role: str = "") -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        kwargs = {**kwargs, **(kwargs.get("vllm") or {})}
        kwargs.pop("vllm", None)
        if taken := sorted((_OURS | _NEVER) & set(kwargs)):
            raise ValueError(f"engine_kwargs: {', '.join(taken)} may not be set here")
        if drafted := kwargs.pop("num_speculative_tokens", 0):  # as ours: by n-grams of the sequence
            ngrams = {"method": "ngram", "num_speculative_tokens": drafted, "prompt_lookup_max": 3}
            kwargs.setdefault("speculative_config", ngrams)
        tensor, pipeline = parallelism.get("tensor", 1), parallelism.get("pipeline", 1)
        # The replica's GPUs are on one node, in its own hands: workers are processes of it, which end with it.
        spread = {"distributed_executor_backend": "mp"} if tensor * pipeline > 1 else {}
        kwargs["kv_transfer_config"] = kv_transfer.config_for(kwargs.get("kv_transfer_config"), role)
        if role:
            kv_transfer.open_side_channel(tensor * pipeline * int(kwargs.get("data_parallel_size") or 1))
        try:
            arguments = AsyncEngineArgs(
                model=str(folder),
                tensor_parallel_size=tensor,
                pipeline_parallel_size=pipeline,
                enable_lora=True,
                load_format="safetensors",
                disable_log_stats=True,
                **{"max_lora_rank": 64, "max_loras": 4, **spread, **kwargs},
            )
        except TypeError as error:
            raise ValueError(f"engine_kwargs: {error}") from None
        self._engine = AsyncLLM.from_engine_args(arguments)
        self.max_model_len = int(self._engine.model_config.max_model_len)
        from transformers import AutoTokenizer, GenerationConfig

        try:
            self.usual = Usual.of(GenerationConfig.from_pretrained(folder, local_files_only=True))
        except OSError:  # a model need not have one
            self.usual = Usual()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._loras: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._has_told = False

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        adapter: str | None,
        transfer: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """`transfer`: of `prefill` of another engine, which has read the prompt; one that cannot be had is read here.
        Raises RequestError."""
        if transfer is not None:
            has_begun = False
            try:
                async with aclosing(self._answer(prompt, sampling, adapter, transfer)) as pieces:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
                return
            except _GivenUp:
                if has_begun:
                    raise
                self._tell("a prompt that another replica had read could not be had from it; it is read here instead")
        async with aclosing(self._answer(prompt, sampling, adapter, None)) as pieces:
            async for piece in pieces:
                yield piece

    async def prefill(self, prompt: Sequence[int], adapter: str | None) -> dict[str, Any]:
        """Read the prompt and keep its keys and values, until another engine has taken them or for as long as vLLM
        keeps what nobody asks for. What it returns is the `transfer` of that other one's `generate`. Cancelled, nothing
        is kept. Raises RequestError."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Only what ends for its length is kept.
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
            extra_args={TRANSFER: dict(_KEEP)},
        )
        id = f"p{uuid.uuid4().hex}"  # no other engine's either: with some versions both sides go by this name
        found: Mapping[str, Any] | None = None
        async with aclosing(self._outputs(id, prompt, parameters, adapter)) as outputs:
            async for output in outputs:
                found = output.kv_transfer_params or found
        if not found:
            raise _GivenUp("vLLM has read the prompt and has kept nothing of it")
        return {"remote_request_id": id, **found}

    async def _answer(
        self, prompt: Sequence[int], sampling: Sampling, adapter: str | None, transfer: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p or 1e-6,  # vLLM refuses 0, which means the likeliest token
            top_k=sampling.top_k or -1,
            min_p=sampling.min_p,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            seed=sampling.seed,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            logprobs=sampling.logprobs,
            structured_outputs=StructuredOutputsParams(json=sampling.schema) if sampling.schema else None,
            output_kind=RequestOutputKind.DELTA,
            extra_args={TRANSFER: dict(transfer)} if transfer is not None else None,
        )
        id, made = f"r{next(self._numbers)}", 0
        if transfer is not None:
            id = str(transfer["remote_request_id"])
        async with aclosing(self._outputs(id, prompt, parameters, adapter)) as outputs:
            async for output in outputs:
                piece = output.outputs[0]
                made += len(piece.token_ids)
                if piece.text or output.finished:
                    reason = ("length" if piece.finish_reason == "length" else "stop") if output.finished else None
                    said = _said(piece, sampling.logprobs)
                    yield Piece(piece.text, len(prompt), made, reason, said, output.num_cached_tokens or 0)

    async def _outputs(
        self, id: str, prompt: Sequence[int], parameters: Any, adapter: str | None
    ) -> AsyncGenerator[Any, None]:
        """vLLM's own. Closed before the last one, it ends the request there. Raises RequestError."""
        if adapter is not None and adapter not in self._loras:
            raise RequestError(f'The adapter "{adapter}" is not loaded here.', code="model_not_found", status=404)
        lora = self._loras[adapter] if adapter is not None else None
        is_over = False
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": list(prompt)}, parameters, id, lora_request=lora
            ):
                is_over = output.finished
                if is_over and output.outputs[0].finish_reason in _FAILED:
                    raise _GivenUp("vLLM has given the request up; its log says why")
                yield output
        finally:
            if not is_over:
                await self._engine.abort(id)

    def _tell(self, text: str) -> None:
        """Once: it may be so of every request."""
        if not self._has_told:
            self._has_told = True
            print(f"vllm: {text} (said once)", file=sys.stderr, flush=True)

    async def load_adapter(self, name: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        from workloads.inference.adapters import AdapterError

        if not (folder / "adapter_model.safetensors").is_file():
            raise AdapterError("it has no adapter_model.safetensors; save it as safetensors")
        request = LoRARequest(lora_name=name, lora_int_id=next(self._numbers), lora_path=str(folder))
        try:
            await self._engine.add_lora(request)
        except Exception as error:
            raise AdapterError(f"vLLM cannot load it: {error}") from error
        old, self._loras[name] = self._loras.get(name), request
        if old is not None:
            await self._engine.remove_lora(old.lora_int_id)

    def check(self) -> None:
        if self._engine.errored:
            raise RuntimeError("vLLM's engine has failed")

    def close(self) -> None:
        self._engine.shutdown()


def _said(piece: Any, count: int | None) -> tuple[Said, ...]:
    """vLLM tells {token: its logprob} at each place, the one that was drawn among them."""
    if count is None or piece.logprobs is None:
        return ()
    said = []
    for token, at in zip(piece.token_ids, piece.logprobs, strict=True):
        best = sorted(((other, told.logprob) for other, told in at.items()), key=lambda row: -row[1])
        said.append(Said(token, at[token].logprob, tuple(best[:count])))
    return tuple(said)
