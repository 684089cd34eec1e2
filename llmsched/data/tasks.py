"""The tasks of models: ONE table of what each one reads, learns, measures and answers.

A row is enough to train, evaluate and serve: the spec allows what stands here, `plan` looks for the roles in the data,
`workloads/tasks/` loads the class and the module that it names. Plain data, so that anybody can read it.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """`auto`: the class of transformers. `reads`: the roles that make the input, in order; "?": may be absent.
    `learns`: a module of workloads/tasks/learns/. `metrics`: the first two are always reported. `answers`: routes."""

    auto: str
    reads: tuple[str, ...]
    target: str | None  # the role that is learnt; None: it lies in what is read
    learns: str | None  # None: for serving only
    metrics: tuple[str, ...]
    answers: tuple[str, ...]

    def roles(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those that every row has, and those that may be absent."""
        needed = tuple(role for role in self.reads if not role.endswith("?"))
        return (*needed, *filter(None, [self.target])), tuple(
            role.removesuffix("?") for role in self.reads if role.endswith("?")
        )


KINDS: dict[str, Kind] = {
    "causal-lm": Kind(
        auto="AutoModelForCausalLM",
        reads=("text",),
        target=None,
        learns="next_token",
        metrics=("loss", "perplexity"),
        answers=("chat/completions", "completions"),
    ),
    "sequence-classification": Kind(
        auto="AutoModelForSequenceClassification",
        reads=("text", "text_pair?"),
        target="label",
        learns="one_label",
        metrics=("loss", "accuracy"),
        answers=("classify",),
    ),
    "feature-extraction": Kind(
        auto="AutoModel", reads=("text",), target=None, learns=None, metrics=(), answers=("embeddings",)
    ),
}
