"""The text engine on vLLM, for GPU machines that have it. Same port as `engine.TransformersEngine`.

Written against vLLM's AsyncLLM; it has not been run on a GPU yet, and nothing imports it unless the spec asks for it or
vLLM and CUDA are both there.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsched.data.parameters import RequestError, Sampling, Usual
from workloads.inference.engine import Piece
from workloads.inference.sampling import Said

# What llmsched sets itself, or never allows: code that comes with a model, weights that are not safetensors.
_OURS = {"model", "tokenizer", "tensor_parallel_size", "pipeline_parallel_size", "enable_lora"}
_NEVER = {"load_format", "trust_remote_code"}


class VllmEngine:
    """`kwargs` are vLLM's engine arguments, more of them under "vllm"; `parallelism` {"tensor", "pipeline"}."""

    def __init__(self, folder: Path, kwargs: Mapping[str, Any], parallelism: Mapping[str, int]) -> None:
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

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter: str | None
    ) -> AsyncGenerator[Piece, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if adapter is not None and adapter not in self._loras:
            raise RequestError(f'The adapter "{adapter}" is not loaded here.', code="model_not_found", status=404)
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
        )
        id, made = f"r{next(self._numbers)}", 0
        outputs = self._engine.generate(
            {"prompt_token_ids": list(prompt)},
            parameters,
            id,
            lora_request=self._loras[adapter] if adapter is not None else None,
        )
        is_over = False
        try:
            async for output in outputs:
                piece = output.outputs[0]
                made += len(piece.token_ids)
                is_over = output.finished
                if piece.text or is_over:
                    reason = ("length" if piece.finish_reason == "length" else "stop") if is_over else None
                    said = _said(piece, sampling.logprobs)
                    yield Piece(piece.text, len(prompt), made, reason, said, output.num_cached_tokens or 0)
        finally:
            if not is_over:
                await self._engine.abort(id)

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
