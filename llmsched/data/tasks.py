"""The tasks of models: ONE table of what each one reads, learns, measures and answers.

A row is enough to train, evaluate and serve: the spec allows what stands here, `plan` looks for the roles in the data,
`workloads/tasks/` loads the class and the module that it names. Plain data, so that anybody can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """`auto`: the class of transformers. `reads`: the roles that make the input, in order; "?": may be absent.
    `target`: the role that is learnt; None: it lies in what is read. `learns`: by objective, the usual one first, a
    module of workloads/tasks/learns/. `answers`: routes. `names`: more columns that are taken for a role here. `lora`:
    PEFT's word for it, "" where it has none; None: no adapters. `explains`: an answer can be told word by word
    (`"explain": true`)."""

    auto: str
    reads: tuple[str, ...]
    target: str | None
    learns: Mapping[str, str]
    answers: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]] = {}
    lora: str | None = None
    explains: bool = False

    @property
    def roles(self) -> list[str]:
        return [role.removesuffix("?") for role in self.reads]

    @property
    def required(self) -> list[str]:
        return [*(role for role in self.reads if not role.endswith("?")), *filter(None, [self.target])]

    @property
    def optional(self) -> list[str]:
        return [role.removesuffix("?") for role in self.reads if role.endswith("?")]

    @property
    def unlabelled(self) -> Kind:
        """The same, of rows that need not have what is learnt: a teacher says it."""
        return self._replace(reads=(*self.reads, f"{self.target}?"), target=None) if self.target else self


# What each module measures. The first two are always reported.
_OF_LABELS = ("loss", "accuracy", "precision", "recall", "f1")
MEASURES: dict[str, tuple[str, ...]] = {
    "next_token": ("loss", "perplexity"),
    "preference": ("loss", "accuracy", "margin"),
    "target_text": ("loss", "perplexity", "bleu", "chrf"),
    "about_image": ("loss", "perplexity"),
    "hidden": ("loss", "perplexity", "accuracy"),
    "one_label": _OF_LABELS,
    "label_each": ("loss", "f1", "precision", "recall", "accuracy"),
    "one_number": ("loss", "mse", "mae", "r2"),
    "span": ("loss", "exact_match", "f1"),
    "contrast": ("loss", "recall_at_1"),
    "pixels": ("loss", "mean_iou", "accuracy", "precision", "recall", "f1"),
    "ctc": ("loss", "wer", "cer"),
    "own_loss": ("loss", "f1", "precision", "recall"),
}

LESS_IS_BETTER = ("loss", "perplexity", "mse", "mae", "wer", "cer")

_CLASSIFY = {"classify": "one_label", "regress": "one_number"}
DISTILL = "distill"  # the objective that learns from a teacher, beside or without what is in the rows
KINDS: dict[str, Kind] = {
    "causal-lm": Kind(
        auto="AutoModelForCausalLM",
        reads=("text",),
        target=None,
        learns={"sft": "next_token", "dpo": "preference", DISTILL: "next_token"},
        answers=("chat/completions", "completions"),
        lora="CAUSAL_LM",
    ),
    "seq2seq-lm": Kind(
        auto="AutoModelForSeq2SeqLM",
        reads=("text",),
        target="target",
        learns={"sft": "target_text"},
        answers=("chat/completions", "completions"),
        names={"text": ("source", "document", "article"), "target": ("translation", "summary", "highlights", "answer")},
        lora="SEQ_2_SEQ_LM",
    ),
    "image-text-to-text": Kind(
        auto="AutoModelForImageTextToText",
        reads=("text", "image"),
        target="target",
        learns={"sft": "about_image"},
        answers=("chat/completions",),
        names={"text": ("question", "prompt"), "target": ("answer", "caption")},
    ),
    "sequence-classification": Kind(
        auto="AutoModelForSequenceClassification",
        reads=("text", "text_pair?"),
        target="label",
        learns={**_CLASSIFY, DISTILL: "one_label"},
        answers=("classify",),
        names={"label": ("score",)},
        lora="SEQ_CLS",
        explains=True,
    ),
    "token-classification": Kind(
        auto="AutoModelForTokenClassification",
        reads=("text",),
        target="label",
        learns={"classify": "label_each"},
        answers=("classify",),
        names={"text": ("tokens", "words"), "label": ("ner_tags", "tags", "entities")},
        lora="TOKEN_CLS",
    ),
    "question-answering": Kind(
        auto="AutoModelForQuestionAnswering",
        reads=("text", "text_pair"),
        target="label",
        learns={"classify": "span"},
        answers=("classify",),
        names={"text": ("question",), "text_pair": ("context", "passage"), "label": ("answers", "answer")},
        lora="QUESTION_ANS",
    ),
    "image-classification": Kind(
        auto="AutoModelForImageClassification",
        reads=("image",),
        target="label",
        learns=_CLASSIFY,
        answers=("classify",),
        lora="",
    ),
    "audio-classification": Kind(
        auto="AutoModelForAudioClassification",
        reads=("audio",),
        target="label",
        learns=_CLASSIFY,
        answers=("classify",),
        lora="",
    ),
    "automatic-speech-recognition": Kind(
        auto="AutoModelForCTC",
        reads=("audio",),
        target="target",
        learns={"ctc": "ctc"},
        answers=("classify", "audio/transcriptions"),
        names={"target": ("text", "sentence", "transcription", "transcript")},
        lora="",
    ),
    "image-segmentation": Kind(
        auto="AutoModelForSemanticSegmentation",
        reads=("image",),
        target="label",
        learns={"classify": "pixels"},
        answers=("classify",),
        names={"label": ("objects", "regions", "boxes")},
        lora="",
    ),
    "object-detection": Kind(
        auto="AutoModelForObjectDetection",
        reads=("image",),
        target="label",
        learns={"classify": "own_loss"},
        answers=("classify",),
        names={"label": ("objects", "regions", "boxes")},
    ),
    "visual-question-answering": Kind(
        auto="AutoModelForVisualQuestionAnswering",
        reads=("text", "image"),
        target="label",
        learns={"classify": "one_label"},
        answers=("classify",),
        names={"text": ("question",), "label": ("answer",)},
    ),
    "masked-lm": Kind(
        auto="AutoModelForMaskedLM", reads=("text",), target=None, learns={"mlm": "hidden"}, answers=(), lora=""
    ),
    "feature-extraction": Kind(
        auto="AutoModel",
        reads=("text", "text_pair"),
        target=None,
        learns={"contrast": "contrast"},
        answers=("embeddings",),
        names={"text": ("anchor", "query", "question"), "text_pair": ("positive", "answer", "passage")},
        lora="FEATURE_EXTRACTION",
    ),
}


TOGETHER = ("sequence-classification", "token-classification", "question-answering", "masked-lm")
"""Those that may share a body in one training: they read texts with an encoder, and their losses are sums over rows."""


def metrics_of(task: str, objective: str | None) -> tuple[str, ...]:
    """What is measured of a task; () for one that cannot be trained."""
    learns = KINDS[task].learns if task in KINDS else {}
    return MEASURES[learns[objective]] if objective and objective in learns else ()
