"""Answers that keep to a JSON schema: llguidance says after each token which may follow.

Its own helper for torch compiles for seconds when it is first used, so its bit masks are unpacked by hand.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from llmsched.data import schemas
from llmsched.data.parameters import RequestError


class Grammars:
    """Of one tokenizer. `size`: of the logits; `ends`: tokens that end an answer."""

    def __init__(self, tokenizer: Any, size: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._size, self._ends = tokenizer, size, sorted(ends)
        self._made: Any = None
        self._lock = threading.Lock()

    def begin(self, schema: str) -> SchemaGrammar:
        """Takes a second the first time: not on an event loop. Raises RequestError for a schema that cannot be used."""
        matcher = _package().LLMatcher
        try:
            grammar = matcher.grammar_from_json_schema(schema, overrides=schemas.WRITTEN)
            wrong = matcher.validate_grammar(grammar, self._tokens())
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise _unusable(wrong)
        return SchemaGrammar(matcher(self._tokens(), grammar), self._size)

    def _tokens(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _package().hf.from_tokenizer(self._tokenizer, self._size, eos_token=self._ends)
            return self._made


class SchemaGrammar:
    """The state of one answer."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size

    def mask(self) -> torch.Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._size].astype(bool))

    def take(self, token: int) -> None:
        """Raises RequestError where the schema turns out too large or without an end only now."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise _unusable(self._matcher.get_error())


def _unusable(why: str) -> RequestError:
    return RequestError(schemas.unusable(why), param="response_format", code="invalid_schema")


def _package() -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError:
        raise RequestError(
            'Answers by a schema need the package llguidance on the nodes: pip install "llmsched[grammar]".',
            param="response_format",
            code="unsupported_parameter",
        ) from None
    return llguidance
