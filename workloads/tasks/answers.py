"""What an output of a model says of each row of a batch: one rule for answers and for metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llmsched.data.contents import BACKGROUND
from llmsched.data.tasks import KINDS
from workloads.tasks.metrics import chunks
from workloads.tasks.reads import Batch, Encoded

_LONGEST_SPAN = 64  # tokens of an answer in a passage

Says = Callable[[Any, Batch, Sequence[Encoded]], list[Any]]  # (output, what was read, its rows) -> an answer for each
Answer = dict[str, Any]  # {"label", "score", "scores"?, "text"?, "at"?: {"start", "end"}}, as /v1/classify has it


def answers_of(task: str, model: Any, reader: Any) -> Says:
    """How `model` answers: for each row a vector, or a list of Answer."""
    config = model.config
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    if task == "question-answering":
        return spans
    if task == "token-classification":
        return lambda out, batch, rows: entities(out.logits, names, rows)
    if task == "automatic-speech-recognition":
        return lambda out, batch, rows: [
            _spoken(row[: reader.places(part)], reader.tokenizer, config.pad_token_id)
            for row, part in zip(out.logits, rows, strict=True)
        ]
    if task == "image-segmentation":
        return lambda out, batch, rows: [
            regions(row, names, part["size"]) for row, part in zip(out.logits, rows, strict=True)
        ]
    if task == "object-detection":
        return lambda out, batch, rows: objects(out, rows, reader.processor, config.id2label)
    if KINDS[task].answers == ("classify",):
        if len(names) == 1:  # a number is learnt
            return lambda out, batch, rows: [[{"label": names[0], "score": each}] for each in out.logits[:, 0].tolist()]
        return lambda out, batch, rows: labels(out.logits, names)
    return lambda out, batch, rows: vectors(out, batch, reader.takes_first).tolist()


def labels(logits: torch.Tensor, names: list[str]) -> list[list[Answer]]:
    """One label of each row, and the probability of all."""
    found = []
    for row in torch.softmax(logits.float(), dim=-1).tolist():
        scores = dict(zip(names, row, strict=True))
        best = max(scores, key=lambda name: scores[name])
        found.append([{"label": best, "score": scores[best], "scores": scores}])
    return found


def entities(logits: torch.Tensor, names: list[str], rows: Sequence[Encoded]) -> list[list[Answer]]:
    """What is named in each text, with its characters. A word has the label of its first token; the score of an entity
    is the mean of its words'."""
    chances, best = torch.softmax(logits.float(), dim=-1).max(-1)
    found: list[list[Answer]] = []
    for row, numbers, scores in zip(rows, best.tolist(), chances.tolist(), strict=True):
        named = list(enumerate(row["words"]))
        words = [n for n, word in named if word is not None and (n == 0 or word != row["words"][n - 1])]
        ends = {row["words"][n]: place[1] for n, place in enumerate(row["places"])}
        said: list[Answer] = []
        for kind, first, last in sorted(chunks([names[numbers[n]] for n in words]), key=lambda each: each[1]):
            start, end = row["places"][words[first]][0], ends[row["words"][words[last]]]
            score = sum(scores[n] for n in words[first : last + 1]) / (last - first + 1)
            at = {"start": start, "end": end}
            said.append({"label": kind, "score": score, "text": row["text"][start:end], "at": at})
        found.append(said)
    return found


def spans(out: Any, batch: Batch, rows: Sequence[Encoded]) -> list[list[Answer]]:
    """The answer in each passage; none where the model says that it does not stand there."""
    found: list[list[Answer]] = []
    for number, row in enumerate(rows):
        text, score, start = best_span(out.start_logits[number], out.end_logits[number], row)
        at = {"start": start, "end": start + len(text)}
        found.append([{"label": text, "score": score, "text": text, "at": at}] if text else [])
    return found


def best_span(starts: torch.Tensor, ends: torch.Tensor, row: Encoded) -> tuple[str, float, int]:
    """(text, probability, first character) of the likeliest span of a passage; "" where none is likelier."""
    places = row["places"]
    size = len(places)
    first, last = torch.softmax(starts[:size].float(), -1), torch.softmax(ends[:size].float(), -1)
    both = (first[:, None] * last[None, :]).triu().tril(_LONGEST_SPAN - 1)
    inside = torch.tensor([place is not None for place in places], device=both.device)
    both = both * inside[:, None] * inside[None, :]
    score, flat = both.flatten().max(0)
    start, end = divmod(int(flat), size)
    if float(score) <= float(first[0] * last[0]):
        return "", float(first[0] * last[0]), 0
    at, to = places[start][0], places[end][1]
    return row["passage"][at:to], float(score), at


def heard(best: Sequence[int], tokenizer: Any, blank: int) -> str:
    """The text of the likeliest letter at each place: repeated ones are one, blanks none."""
    kept = [token for place, token in enumerate(best) if token != blank and (not place or token != best[place - 1])]
    is_of_ctc = hasattr(tokenizer, "word_delimiter_token")  # its decode would take double letters for repeated ones
    return str(tokenizer.decode(kept, group_tokens=False) if is_of_ctc else tokenizer.decode(kept)).strip()


def _spoken(logits: torch.Tensor, tokenizer: Any, blank: int) -> list[Answer]:
    chances, best = torch.softmax(logits.float(), -1).max(-1)
    text = heard(best.tolist(), tokenizer, blank)
    return [{"label": text, "score": float(chances.mean()), "text": text}]


def regions(logits: torch.Tensor, names: list[str], size: tuple[int, int]) -> list[Answer]:
    """What hangs together and is not background in one image: label, mean probability, box in its pixels."""
    chances, best = torch.softmax(logits.float(), 0).max(0)
    numbers, scores = best.tolist(), chances.tolist()
    high, wide = best.shape
    seen = [[names[number] == BACKGROUND for number in row] for row in numbers]
    found: list[Answer] = []
    for top in range(high):
        for left in range(wide):
            if seen[top][left]:
                continue
            number, edge, place = numbers[top][left], [(top, left)], 0
            seen[top][left] = True
            while place < len(edge):
                y, x = edge[place]
                place += 1
                for row, column in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= row < high and 0 <= column < wide
                    if inside and not seen[row][column] and numbers[row][column] == number:
                        seen[row][column] = True
                        edge.append((row, column))
            ys, xs = [y for y, _ in edge], [x for _, x in edge]
            box = [min(xs) / wide, min(ys) / high, (max(xs) + 1) / wide, (max(ys) + 1) / high]
            at = {"box": [round(part * size[side % 2], 2) for side, part in enumerate(box)]}
            score = sum(scores[y][x] for y, x in edge) / len(edge)
            found.append({"label": names[number], "score": score, "at": at})
    return found


def objects(out: Any, rows: Sequence[Encoded], processor: Any, names: Any) -> list[list[Answer]]:
    """What the model is more sure to see than not, with its box in pixels of the image."""
    sizes = torch.tensor([part["size"][::-1] for part in rows])
    found = processor.post_process_object_detection(out, threshold=0.5, target_sizes=sizes)
    return [
        [
            {"label": str(names[number]), "score": score, "at": {"box": [round(edge, 2) for edge in box]}}
            for number, score, box in zip(*(row[name].tolist() for name in ("labels", "scores", "boxes")), strict=True)
        ]
        for row in found
    ]


def vectors(out: Any, batch: Batch, takes_first: bool) -> torch.Tensor:
    """A vector of length 1 for each row: of its first token, or the mean of all."""
    states, weights = out.last_hidden_state, batch["attention_mask"][..., None]
    if takes_first:
        made = states[:, 0]
    else:
        made = (states * weights.to(states.dtype)).sum(dim=1) / weights.sum(dim=1)
    return torch.nn.functional.normalize(made.float(), dim=-1)
