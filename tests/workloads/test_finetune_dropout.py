"""Dropout depends on the row and the step alone: neither the number of workers, nor batches, nor padding show in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest
from test_finetune import assert_close, chat, classify, losses, made, result_of  # noqa: F401  a fixture


def spec_of(kind: str, made: Path, folder: Path, **changes: Any) -> dict[str, Any]:  # noqa: F811
    if kind == "lora":
        lora = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.4, "target_modules": ["q_proj", "v_proj"]}
        return chat(made, lora=lora, **changes)
    base = folder / "base"
    if not base.exists():
        shutil.copytree(made / "bert", base)
        config = json.loads((base / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
        (base / "config.json").write_text(json.dumps(config))
    return classify(made, base_model=str(base), **changes)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_workers_train_with_dropout_exactly_as_one_does(kind: str, made: Path, tmp_path: Path) -> None:  # noqa: F811
    one, two, none = tmp_path / "one", tmp_path / "two", tmp_path / "none"
    assert tiny.in_worker(tiny.finetune, str(one), spec_of(kind, made, tmp_path)) == "done"
    assert tiny.gang(2, tiny.finetune, str(two), spec_of(kind, made, tmp_path, micro_batch_size=2)) == ["done"] * 2
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)
    assert_close(result_of(one), result_of(two))
    assert tiny.in_worker(tiny.finetune, str(none), (chat if kind == "lora" else classify)(made)) == "done"
    assert losses(none) != pytest.approx(losses(one), abs=1e-3)  # there is dropout


def test_what_is_computed_again_on_the_way_back_has_the_same_dropout(made: Path, tmp_path: Path) -> None:  # noqa: F811
    plain = spec_of("full", made, tmp_path)
    again = spec_of("full", made, tmp_path)
    again["train"]["training_args"] = {**again["train"]["training_args"], "gradient_checkpointing": True}
    for name, spec in (("plain", plain), ("again", again)):
        assert tiny.in_worker(tiny.finetune, str(tmp_path / name), spec) == "done"
    assert_close(result_of(tmp_path / "plain"), result_of(tmp_path / "again"))


def drawn(rank: int, size: int) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from workloads.finetune.dropout import RowChance, key_of

    keys = torch.tensor([key_of(1, 2, row) for row in range(4)])
    ones = torch.ones(4, 64, 64)
    with RowChance(keys, 7):
        first, second = functional.dropout(ones, 0.25), functional.dropout(ones, 0.25)
    with RowChance(keys[1:3], 7):
        part = functional.dropout(ones[1:3, :50], 0.25)
    attend = functional.scaled_dot_product_attention
    query, key, value = torch.randn(3, 4, 2, 6, 8).unbind(0)
    mask = torch.rand(4, 1, 6, 6) > 0.2
    mask[..., 0] = True
    with RowChance(keys, 7):
        outs = [attend(query, key, value, dropout_p=1e-12, **how) for how in hows(mask)]
    plain = [attend(query, key, value, **how) for how in hows(mask)]
    gone = (first == 0).float()
    return {
        "rate": float(gone.mean()),
        "kept": float(first.max()),
        "sites": float(((first == 0) & (second == 0)).float().mean()),
        "neighbours": float((gone[:, :, 1:] * gone[:, :, :-1]).mean()),
        "rows": float((gone[0] * gone[1]).mean()),
        "part": bool(torch.equal(part, first[1:3, :50])),
        "attention": max(float((a - b).abs().max()) for a, b in zip(outs, plain, strict=True)),
    }


def hows(mask: Any) -> list[dict[str, Any]]:
    import torch

    added = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    return [{}, {"is_causal": True}, {"attn_mask": mask}, {"attn_mask": added}, {"scale": 0.3}]


def test_a_mask_is_as_random_as_it_should_be_and_that_of_a_row_its_own() -> None:
    found = tiny.in_worker(drawn)
    assert found["rate"] == pytest.approx(0.25, abs=0.015) and found["kept"] == pytest.approx(1 / 0.75)
    for name in ("sites", "neighbours", "rows"):  # independent: 0.25 * 0.25
        assert found[name] == pytest.approx(0.0625, abs=0.01), name
    assert found["part"]
    assert found["attention"] < 1e-6
