"""How many tokens a model reads: one rule for training and serving."""

from __future__ import annotations

from typing import Any


def longest(config: Any, tokenizer: Any) -> int | None:
    """What the model's positions and its tokenizer allow; None: neither sets a limit."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(inner, "max_position_embeddings", None)
    if positions:
        positions -= _before_the_first(config)
    limits = [tokenizer.model_max_length, positions]
    return min((int(limit) for limit in limits if limit and limit < 10**9), default=None)


def _before_the_first(config: Any) -> int:
    """Positions that RoBERTa and its relatives keep for the padding: theirs begin after it. Made without weights."""
    import torch
    from transformers import AutoModel

    if any(kind.endswith("ForCausalLM") for kind in getattr(config, "architectures", None) or ()):
        return 0  # a large model, and none of these
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except Exception:  # a config that AutoModel does not know: whoever loads the model says what is wrong with it
        return 0
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else int(module.padding_idx) + 1
    return 0
