"""A model as it is served: every weight that answers depend on is in its files, or it is refused.

transformers gives what is missing random numbers and says so in a log: a base that was meant to be its fine-tune would
answer, and each answer would be chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched.data.tasks import KINDS
from workloads.sources import BadInput

_OF_TRAINING = ("masked_spec_embed",)  # what hides audio from a model that learns


def load(model: Any, folder: Path, dtype: Any, task: str) -> Any:
    """The model in `folder` by `model`, a class of transformers. Raises BadInput for one that lacks weights."""
    loaded, info = model.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(_OF_TRAINING))
    has_head = KINDS[task].auto != "AutoModel"  # of a body a part may be missing that no answer needs, as a pooler
    if missing and (has_head or len(missing) > sum(1 for _ in loaded.parameters()) // 2):
        raise BadInput(
            f"model {folder}: {len(missing)} weights are missing (such as {missing[0]}), so it has not learnt {task}: "
            "this is a base, and not what was fine-tuned from it"
        )
    return loaded
