"""Token ids of what a language model learns, and which of them count.

    messages            through the tokenizer's chat template; the assistant's turns count (`chat_mask`)
    text and target     the target and the end of text count
    text                everything counts; long texts become several samples

What a data set's columns mean is `llmsched.data.formats`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmsched.data.messages import Unusable, shows_python, with_json_arguments, with_written_calls
from llmsched.data.rows import Row
from workloads.sources import BadInput
from workloads.tasks import chat_mask, content_parts
from workloads.tasks.reads import first_line
from workloads.tasks.task import IGNORED

_SHOWN_OTHERWISE = ("role", "content", "tool_calls", "tool_call_id", "id")
_ALPACA = "### Instruction:\n{}\n\n### Response:\n"  # for a base model without a chat template


class Dialogues:
    """`seen` counts what was noticed on the way, by what it is."""

    def __init__(self, tokenizer: Any, seen: Counter[str]) -> None:
        self.tokenizer, self.seen = tokenizer, seen

    def whole(self, row: Row) -> tuple[list[int], list[int]]:
        """Ids and labels, not cut. Raises Unusable."""
        try:
            row = self._readable(row)
            return self.chat(row["messages"], row.get("tools")) if "messages" in row else self._prompt(row)
        except (Unusable, BadInput):
            raise
        except Exception as error:  # a template refuses in its own words; a tokenizer fails in many ways
            if isinstance(error, (MemoryError, NotImplementedError)):
                raise
            roles = f" (its roles: {', '.join(each['role'] for each in row['messages'])})" if "messages" in row else ""
            what = "the chat template" if "messages" in row else "the tokenizer"
            raise Unusable(f"is refused by {what} of the model: {first_line(error)}{roles}") from error

    def chat(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of the whole dialogue, and labels where the assistant speaks (its end-of-turn mark included)."""
        plain = [{key: value for key, value in message.items() if key != "learn"} for message in messages]

        def render(some: Sequence[Mapping[str, Any]], prompt: bool) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    content_parts.fitting(self.tokenizer, some),
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )

        if any("tool_calls" in message for message in plain):
            plain = self._with_calls(render, plain)
        text, turns = chat_mask.turns(render, plain)
        self._count_unshown(text, plain)
        turns = [turn for turn in turns if messages[turn.message].get("learn", True)]
        learnt = [turn for turn in turns if self._is_shown(text, turn, plain[turn.message])]
        if not learnt:
            raise Unusable("has no turn of the assistant that the chat template shows, so there is nothing to learn")
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return coded["input_ids"], list(_labels(coded, text, [(turn.start, turn.end) for turn in learnt]))

    def _is_shown(self, text: str, turn: chat_mask.Turn, message: Mapping[str, Any]) -> bool:
        """Whether there is something to learn of a turn; counts those that are not there as they were written."""
        shown = "".join(text[turn.start : turn.end].split())
        content = "".join(message["content"].rpartition("</think>")[2].split())
        if not shown:
            self.seen["turns of the assistant that the chat template does not show: nothing is learnt of them"] += 1
        elif content not in shown:
            self.seen["turns of the assistant that the chat template writes otherwise than the data set has them"] += 1
        return bool(shown)

    def _count_unshown(self, text: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """What a message has beside its content and the template leaves out, such as thoughts, and messages of a role
        that it does not know: nobody would miss them."""
        for message in messages:
            said = message["content"] if message["role"] not in ("assistant", "tool") else ""
            if said.strip() not in text and "".join(said.split()) not in "".join(text.split()):
                self.seen[f"messages of the role {message['role']!r} that the chat template does not show"] += 1
            for key, value in message.items():
                if key not in _SHOWN_OTHERWISE and isinstance(value, str) and value.strip() not in text:
                    self.seen[f"messages whose {key!r} the chat template does not show"] += 1

    def _with_calls(self, render: chat_mask.Render, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages so that the template shows their tool calls, as it likes the arguments: an object, or JSON."""
        try:
            text = render(messages, False)
            is_python = any(shows_python(text, call) for each in messages for call in each.get("tool_calls", ()))
        except TypeError:  # a template that joins texts
            is_python = True
        if is_python:
            messages = [with_json_arguments(message) for message in messages]
            text = render(messages, False)
        shown = render([{k: v for k, v in each.items() if k != "tool_calls"} for each in messages], False)
        if shown != text:
            return messages
        self.seen[
            "conversations whose tool calls the chat template does not know: written as <tool_call>JSON</tool_call>"
        ] += 1
        return [with_written_calls(message) for message in messages]

    def _readable(self, row: Row) -> Row:
        """What this tokenizer can read: without a chat template, an instruction is written out as a prompt."""
        if "messages" not in row or self.tokenizer.chat_template:
            return row
        *before, asked, answer = row["messages"]
        if not row.get("alpaca") or before:
            raise BadInput("this base model has no chat template; give prompt and target columns, or plain text")
        return {"text": _ALPACA.format(asked["content"]), "target": answer["content"]}

    def _prompt(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        prompt = self._coded(str(row["text"]))
        target = [*self.tokenizer(str(row["target"]), add_special_tokens=False)["input_ids"], self._end()]
        return [*prompt, *target], [*[IGNORED] * len(prompt), *target]

    def pieces(self, text: str, length: int) -> Iterator[tuple[list[int], list[int]]]:
        """A text in parts of at most `length` tokens."""
        try:
            ids = [*self._coded(text), self._end()]
        except Exception as error:
            raise Unusable(f"is refused by the tokenizer of the model: {first_line(error)}") from error
        for at in range(0, len(ids), length):
            part = ids[at : at + length]
            if len(part) > 1 or len(ids) == 1:  # one token alone has none before it to be learnt from
                yield part, part

    def _coded(self, text: str) -> list[int]:
        """As an endpoint codes a prompt, with the mark that begins a text; without one that ends it."""
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        return int(end if end is not None else self.tokenizer.pad_token_id or 0)


def _labels(coded: Mapping[str, Any], text: str, spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The token itself where it lies in a span, give or take white space that it shares with what stands beside."""
    at = 0
    for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        first, last = spans[at] if at < len(spans) else (len(text), len(text))
        inside = max(start, first) < min(end, last) and not text[start:first].strip() and not text[last:end].strip()
        yield token if inside else IGNORED
