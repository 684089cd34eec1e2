"""What a fine-tuning learns of a row: every turn of the assistant, whatever the template; what is said of others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest

# As the templates of Qwen3 and its successors: thoughts stand in the last turn only, behind a mark of their own.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# As those of Llama 2 and Mistral: no beginning of an answer, an end that only answers have, no role system.
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('only user and assistant, please') }}{% endif %}{% endfor %}"
)
# As Llama 3.1's: a call of a tool stands in the place of the content, its answer goes to another role.
TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}'
    "{% else %}{{ m.content }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As those of models that see, which read a content in parts: one writes nothing of a text, the other fails on it.
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}<end>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
FIRST_PART = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content[0]['text'] }} [/INST]"
    "{% else %} {{ m.content[0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
IGNORING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
DROPPING = "{% for m in messages %}{% if loop.last or m.role == 'user' %}"
DROPPING += "<{{ m.role }}>{{ m.content }}</s>{% endif %}{% endfor %}"


def learnt(rank: int, size: int, template: str, messages: list[Any], tools: list[Any] | None = None) -> list[Any]:
    import tiny_models

    from workloads.tasks.dialogues import Dialogues
    from workloads.tasks.task import IGNORED

    tokenizer = tiny_models.byte_tokenizer()
    tokenizer.chat_template = template
    seen: Counter[str] = Counter()
    ids, labels = Dialogues(tokenizer, seen).chat(messages, tools)
    parts: list[list[int]] = [[]]
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORED:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])
    return [[tokenizer.decode(part) for part in parts if part], dict(seen)]


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


FUNCTION = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [FUNCTION]}
CALLING = [*turns("how"), CALL, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}]


@pytest.mark.parametrize(
    ("template", "messages", "parts"),
    [
        (
            THINKING,
            turns("q1", " a1 ", "q2", "<think>hm</think> a2", "q3", "a3"),
            ["a1<|im_end|>", "<think>hm</think> a2<|im_end|>", "\n</think>\n\na3<|im_end|>"],
        ),
        (INST, turns("q1", "a1", "q2", "a2"), [" a1</s>", " a2</s>"]),
        (TOOLS, CALLING, ['{"name": "f", "arguments": {"a": 1}}</s>', "four</s>"]),
        (IGNORING, turns("user", "user", "q", "assistant"), ["<assistant>user</s>", "<assistant>assistant</s>"]),
        (PARTS, turns("q1", "a1", "q2", "a2"), ["a1<end>", "a2<end>"]),
        (FIRST_PART, turns("q1", "a1", "q2", "a2"), [" a1</s>", " a2</s>"]),
        (TOOLS, [*turns("q", "a", "q"), {"role": "assistant", "content": "a", "learn": False}], ["a</s>"]),
    ],
)  # fmt: skip
def test_every_turn_of_the_assistant_is_learnt_whatever_the_template_does(
    template: str, messages: list[Any], parts: list[str]
) -> None:
    assert tiny.in_worker(learnt, template, messages)[0] == parts


def test_a_tool_call_is_learnt_also_where_the_template_knows_none_and_never_as_python() -> None:
    parts, said = tiny.in_worker(learnt, IGNORING, CALLING)
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call></s>' in parts[0] and "None" not in parts[0]
    assert "written as <tool_call>" in next(iter(said))
    plain = TOOLS.replace(" | tojson", "")
    assert tiny.in_worker(learnt, plain, CALLING)[0][0] == '{"name": "f", "arguments": {"a": 1}}</s>'


def test_turns_that_a_template_leaves_out_are_counted() -> None:
    parts, said = tiny.in_worker(learnt, DROPPING, turns("q1", "a1", "q2", "a2"))
    assert parts == ["<assistant>a2</s>"]
    assert said == {"turns of the assistant that the chat template does not show: nothing is learnt of them": 1}


def test_a_message_of_a_role_that_a_template_passes_over_is_counted() -> None:
    told = {"role": "developer", "content": "be  brief"}
    assert tiny.in_worker(learnt, DROPPING, [told, *turns("q", "a")])[1] == {
        "messages of the role 'developer' that the chat template does not show": 1
    }
    trimming = IGNORING.replace("m.content", "m.content.split() | join(' ')")
    assert tiny.in_worker(learnt, trimming, [told, *turns("q", "a")])[1] == {}


def test_what_a_message_has_beside_its_content_is_counted_where_a_template_leaves_it_out() -> None:
    thought = {"role": "assistant", "reasoning_content": "six times seven", "content": "42"}
    assert tiny.in_worker(learnt, IGNORING, [*turns("q"), thought])[1] == {
        "messages whose 'reasoning_content' the chat template does not show": 1
    }
    showing = IGNORING.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}")
    assert tiny.in_worker(learnt, showing, [*turns("q"), thought])[1] == {}


def samples(rank: int, size: int, model: str, dataset: dict[str, Any], max_length: int, changes: dict[str, Any]) -> Any:
    from tokenizers import processors
    from transformers import AutoTokenizer

    from workloads.sources import BadInput
    from workloads.tasks.learns.next_token import Learns
    from workloads.tasks.reads import Text
    from workloads.tasks.task import IGNORED

    tokenizer = AutoTokenizer.from_pretrained(model)
    if "bos" in changes:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    if "template" in changes:
        tokenizer.chat_template = changes["template"]
    task = Learns("causal-lm", Text(tokenizer, max_length, changes.get("vocab_size")))
    try:
        found = task.samples([dataset], {})
    except BadInput as error:
        return str(error)
    words = [tokenizer.convert_ids_to_tokens(list(each["input_ids"])) for each in found]
    labels = [[int(label) for label in each["labels"] if label != IGNORED] for each in found]
    asked = tokenizer("good film")["input_ids"]
    return [words, labels, task.notes, asked]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny.in_worker(tiny.make, str(folder))
    return folder


def of(made: Path, file: Path, max_length: int = 64, dataset: dict[str, Any] | None = None, **changes: Any) -> Any:
    return tiny.in_worker(samples, str(made / "llama"), {"path": str(file), **(dataset or {})}, max_length, changes)


def test_an_answer_that_max_length_cuts_off_is_counted_and_one_with_nothing_left_does_not_train(
    made: Path, tmp_path: Path
) -> None:
    rows = [("film " * 20, "open"), ("how", "open the film " * 5), ("how", "open")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in rows))
    words, labels, notes, _ = of(made, tmp_path / "a.jsonl", 12)
    assert [len(each) for each in words] == [12, 3] and all(labels)
    path = tmp_path / "a.jsonl"
    assert f"{path}: 1 left out: the prompt alone fills max_length 12, nothing of the answer is left" in notes
    assert f"{path}: 1 with an answer that is cut off at max_length 12" in notes


def test_a_plain_text_begins_as_an_endpoint_codes_it(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good film\n")
    words, labels, _, asked = of(made, tmp_path / "a.txt", bos=True)
    assert words == [["<s>", "good", "film", "<|im_end|>"]] and labels[0][:3] == asked


def test_a_row_that_a_template_or_the_vocabulary_refuses_is_named_or_left_out(made: Path, tmp_path: Path) -> None:
    rows = [turns("how", "open"), [{"role": "system", "content": "you"}, *turns("how", "open")]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    said = of(made, tmp_path / "a.jsonl", template=INST)
    assert "row 2 of a.jsonl is refused by the chat template of the model: only user and assistant, please" in said
    assert "its roles: system, user, assistant" in said
    skipped = of(made, tmp_path / "a.jsonl", dataset={"on_bad_row": "skip"}, template=INST)
    assert len(skipped[0]) == 1 and any("1 of 2 rows left out: row 2 of a.jsonl" in note for note in skipped[2])
    assert "has the token 29, and the model knows 8" in of(made, tmp_path / "a.jsonl", vocab_size=8)


def test_an_instruction_trains_a_base_without_a_chat_template_as_a_prompt(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "how do i", "output": "open"}]))
    words, labels, notes, _ = of(made, tmp_path / "a.json", template=None)
    assert words[0][-4:] == ["[UNK]", "[UNK]", "open", "<|im_end|>"] and len(labels[0]) == 2
    assert f"{tmp_path / 'a.json'}: alpaca: 1 rows" in notes


def classes(rank: int, size: int, model: str, file: str, known: dict[str, int] | None) -> Any:
    from transformers import AutoTokenizer

    from workloads.sources import BadInput
    from workloads.tasks.learns.one_label import Learns
    from workloads.tasks.reads import Text

    task = Learns("sequence-classification", Text(AutoTokenizer.from_pretrained(model), 8), known)
    try:
        found = task.samples([{"path": file}], {})
    except BadInput as error:
        return str(error)
    return [task.labels.numbers, [each["labels"] for each in found], task.new_head, task.notes]


@pytest.mark.parametrize(
    ("labels", "known", "numbers", "new_head"),
    [
        (["Positive", "Negative"], {"positive": 0, "negative": 1, "neutral": 2}, [0, 1], False),
        (["pos ", "neg"], {"POS": 0, "NEG": 1}, [0, 1], False),
        ([1, 0], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0], False),
        (["1.0", "0.0", "1"], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0, 1], False),
        (["good", "bad"], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0], True),
        (["Pos", "Mixed"], {"pos": 1, "neg": 0}, [1, 0], True),
        (["b", "a"], None, [1, 0], False),
    ],
)
def test_labels_keep_the_numbers_of_the_base_where_they_are_its_own_and_else_the_head_is_new(
    labels: list[Any], known: dict[str, int] | None, numbers: list[int], new_head: bool, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "good", "label": label}) for label in labels))
    names, found, is_new, notes = tiny.in_worker(classes, str(made / "bert"), str(tmp_path / "a.jsonl"), known)
    assert found == numbers and is_new is new_head
    assert not known or (names == known) is not new_head
    assert any("is made anew" in note for note in notes) is new_head
    assert any(f"{len(set(numbers))} labels: " in note for note in notes)


def test_the_names_of_labels_that_a_file_keeps_are_taken_and_texts_that_are_cut_are_counted(
    made: Path, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    about = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    table = pyarrow.Table.from_pylist([{"sentence": "film " * 20, "label": 1}, {"sentence": "film", "label": 0}])
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)
    names, found, _, notes = tiny.in_worker(classes, str(made / "bert"), str(file), None)
    assert names == {"bad": 0, "good": 1} and found == [1, 0]
    assert f"{file}: 1 of 2 texts are cut off at max_length 8" in notes
    assert f"{file}: 2 rows; text from 'sentence'" in notes


def scored(rank: int, size: int, model: str, adapter: bool, hides: bool) -> Any:
    """(loss, that by all logits, places where the vocabulary was worked out, whether both teach the same, weight)"""
    import peft
    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workloads.tasks.learns.next_token import Learns
    from workloads.tasks.reads import Text

    net: Any = AutoModelForCausalLM.from_pretrained(model)
    head, places = net.get_output_embeddings(), []
    head.register_forward_hook(lambda _, given, out: places.append(out.shape[1]))
    if adapter:
        net = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="gaussian"))
    if hides:  # one that works out all of them, whatever it is asked for
        plain = net.forward
        net.forward = lambda input_ids, attention_mask, use_cache: plain(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
        )
    task = Learns("causal-lm", Text(AutoTokenizer.from_pretrained(model), 64))
    rows = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, -100, 8, 9, -100]},
        {"input_ids": [6, 7, 8, 9], "labels": [-100, -100, 8, 9]},
    ]
    batch = task.collate(rows)
    score = task.score(net, batch)
    known = [each for each in net.parameters() if each.requires_grad]
    mine = torch.autograd.grad(score.loss, known, allow_unused=True)
    logits = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
    whole = functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    theirs = torch.autograd.grad(whole, known, allow_unused=True)
    alike = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, theirs, strict=True) if b is not None)
    return float(score.loss.detach()), float(whole.detach()), places[0], alike, score.weight


@pytest.mark.parametrize(
    ("adapter", "hides", "places"), [(False, False, 3), (True, False, 3), (False, True, 6)], ids=str
)
def test_the_vocabulary_is_worked_out_only_where_something_is_to_be_said_and_teaches_the_same(
    made: Path, adapter: bool, hides: bool, places: int
) -> None:
    loss, whole, worked_out, alike, weight = tiny.in_worker(scored, str(made / "llama"), adapter, hides)
    assert (loss, worked_out, weight) == (pytest.approx(whole, rel=1e-5), places, 4) and alike
