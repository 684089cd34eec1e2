"""What a spec file may say, and how it is refused: the sentence, its place, the nearest key; all problems at once."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from llmsched.errors import SpecError
from llmsched.spec import cluster
from llmsched.spec.load import KINDS, load, load_json
from llmsched.spec.validation import keys_of

HERE = Path(__file__).parent
TASK = "name: a\nkind: task\ntask: {run: [x]}\n"
TRAIN = "name: a\nkind: train\ntrain: {base_model: m, datasets: [{path: d}]}\n"
SERVE = "name: a\nkind: serve\nserve: {model: {source: m}}\n"


def refusal(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load(textwrap.dedent(text), "a.yaml")
    return caught.value


def said(text: str) -> list[str]:
    return [str(problem) for problem in refusal(text).problems]


def section(name: str, body: str) -> str:
    return f"name: a\nkind: {name}\n{name}: {body}\n"


def refused_paths(document: str) -> list[str]:
    """The quoted path (or kind) in each problem; every one must be `not_supported_yet`."""
    problems = refusal(document).problems
    assert {problem.code for problem in problems} == {"not_supported_yet"}
    return [problem.message.split('"')[1] for problem in problems]


def documents(file: str) -> dict[str, str]:
    texts = (HERE / file).read_text().split("---\n")
    return {text.split("name: ")[1].split("\n")[0]: text for text in texts}


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("sql-lora", ["checkpoint.uri"]),
        ("qwen", []),
        ("large", []),
        ("large-prompts", []),
        ("support-desk", []),
        ("my-loop", []),
        ("score-archive", []),
        ("find-lr", []),
        ("anything", []),
    ],
)
def test_every_promised_key_is_known_and_what_does_nothing_yet_is_refused(name, refused):
    text = documents("promised.yaml")[name]
    if refused:
        assert refused_paths(text) == refused
    else:
        assert load(text)[0].name == name


def test_every_promised_key_of_the_cluster_file_works():
    found = cluster.load((HERE / "promised_cluster.yaml").read_text(), "c.yaml")
    assert (found.queues[0].roles.submitter, found.queues[0].roles.admin) == (["alice"], ["bob"])


def test_an_unknown_key_is_refused_at_its_line_and_column_with_the_nearest_one():
    assert said("name: lora\nkind: train\nnum_worker: 2\ntrain: {base_model: m, datasets: [{path: d}]}\n") == [
        'a.yaml:3:1: unknown key "num_worker" in a train workload. Did you mean "workers"?'
    ]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        (TASK + "cpus: 2", "resources.cpus"),
        (TASK + "gpus: 2", "resources.accelerators"),
        (TASK + "num_nodes: 2", "workers"),
        (TASK + "env: {}", "envs"),
        (TASK + "run: x", "task.run"),
        (TASK + "resources: {memry: 1GB}", "memory"),
        (TASK + "retry: {max_restart: 1}", "max_restarts"),
        (SERVE + "replica: 2", "replicas"),
        (SERVE + "workers: 2", "replicas"),
        (TASK + "xyz: 2", None),
        (section("train", "{model: x, base_modell: m, datasets: [{path: d}]}"), "base_model"),
        (section("train", "{base_model: m, datasets: [{path: d}], training_args: {lr: 1}}"), "learning_rate"),
        (section("train", "{base_model: m, datasets: [{path: d}], training_args: {learnin_rate: 1}}"), "learning_rate"),
        (section("train", "{base_model: m, datasets: [{path: d}], lora: {rank: 1}}"), "r"),
    ],
)
def test_the_suggestion_is_the_key_that_was_meant(text, suggestion):
    problems = [str(problem) for problem in refusal(text).problems if problem.code == "unknown_key"]
    assert problems
    if suggestion:
        assert any(f'Did you mean "{suggestion}"?' in problem for problem in problems)
    else:
        assert "Known keys:" in problems[0]


def test_a_real_name_of_the_library_is_not_supported_and_a_misspelt_one_is_corrected():
    text = """\
        name: a
        kind: train
        train:
          base_model: m
          datasets: [{path: d}]
          training_args:
            optim: adafactor
            warmup_step: 3
          lora: {use_dora: true}
        """
    first, second, third = refusal(text).problems
    assert str(first).startswith('a.yaml:7:5: "optim" of transformers.TrainingArguments is not supported. Supported: ')
    assert first.code == "not_supported_yet"
    assert str(second) == (
        'a.yaml:8:5: unknown key "warmup_step" in "train.training_args". Did you mean "warmup_steps"?'
    )
    assert (third.where, third.code) == ("a.yaml:9:10", "not_supported_yet")


def test_all_problems_of_all_documents_are_said_at_once_in_the_order_of_the_file():
    error = refusal(
        """\
        name: Big
        kind: task
        workers: 4..2
        priority: high
        task: {run: python x.py}
        placement: {region: eu}
        ---
        name: b
        kind: trian
        ---
        name: c
        kind: serve
        serve: {}
        """
    )
    assert str(error).split("\n") == [
        'a.yaml:1:7: "name": expected a name of lower-case letters, digits and "-", at most 63 long, got "Big"',
        'a.yaml:3:10: "workers": the range ends (2) before it begins (4)',
        'a.yaml:4:11: "priority": expected a whole number, got "high"',
        'a.yaml:5:13: "task.run": expected a list of words, such as ["python", "script.py"]; '
        'for a shell ["bash", "-c", "..."], got "python x.py"',
        'a.yaml:6:21: "placement.region": "eu" is not supported yet. Supported: any.',
        'a.yaml:9:7: "kind": expected one of train, serve, batch, tune, task, ray, got "trian". Did you mean "train"?',
        'a.yaml:13:8: "serve": expected exactly one of "model" (our engine serves it) and "app" (your own class)',
    ]
    assert (error.code, error.exit_code, error.http_status) == ("invalid_spec", 2, 422)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        # kinds and documents
        ("", "1:1", "there is no workload in it"),
        ("# nothing\n---\n", "1:1", "there is no workload in it"),
        ("- a\n", "1:1", "expected a workload: keys and values, not a list"),
        ("just text\n", "1:1", "keys and values, not 'just text'"),
        ("name: a\ntask: {run: [x]}\n", "1:1", '"kind" is missing. Add "kind: task".'),
        ("name: a\nkind: [task]\n", "2:7", '"kind": expected one of'),
        ("kind: task\ntask: {run: [x]}\n", "1:1", '"name" is missing in a task workload'),
        ("name: a\nkind: task\n", "1:1", '"task" is missing in a task workload'),
        (TASK + "---\n" + TASK, "5:7", 'the name "a" stands at a.yaml:1:7 already'),
        # names
        ("name: -a\nkind: task\ntask: {run: [x]}", "1:7", 'got "-a"'),
        ("name: a/b\nkind: task\ntask: {run: [x]}", "1:7", 'got "a/b"'),
        (f"name: {'a' * 64}\nkind: task\ntask: {{run: [x]}}", "1:7", "at most 63 long"),
        ("name: 7\nkind: task\ntask: {run: [x]}", "1:7", '"name": expected text, got 7'),
        (TASK + "queue: 'a b'", "4:8", '"queue": expected a name'),
        (TASK + "after: [a]", "4:8", '"after": names the workload itself'),
        (TASK + "after: [b@0]", "4:9", '"after[0]": expected the name of a workload'),
        # types
        (TASK + "priority: true", "4:11", '"priority": expected a whole number, got true'),
        (TASK + "priority: 101", "4:11", '"priority": expected at most 100, got 101'),
        (TASK + "priority: 1.5", "4:11", '"priority": expected a whole number, got 1.5'),
        (TASK + "resources:", "4:11", '"resources": expected a section with keys, got nothing'),
        (TASK + "resources: {cpus: two}", "4:19", '"resources.cpus": expected a number, got "two"'),
        (TASK + "resources: {cpus: -1}", "4:19", '"resources.cpus": expected at least 0, got -1'),
        (TASK + "resources: {cpus: .inf}", "4:19", ".inf is not a finite number"),
        (TASK + "resources: {custom: {FPGA: 0}}", "4:28", '"resources.custom.FPGA": expected more than 0, got 0'),
        (TASK + "preemption: {enabled: yes}", "4:23", '"preemption.enabled": expected true or false, got "yes"'),
        (TASK + "after: b", "4:8", '"after": expected a list, got "b"'),
        (TASK + "retry: {on_events: [no_capacity]}", "4:21", 'Did you mean "no-capacity"?'),
        # ranges
        (TASK + "workers: 0", "4:10", '"workers": expected at least 1, got 0'),
        (TASK + "workers: 0..4", "4:10", '"workers": expected at least 1'),
        (TASK + "workers: 2-8", "4:10", 'expected a whole number, a range such as "2..8", or {min, max, step}'),
        (TASK + "workers: 2.5", "4:10", "expected a whole number, a range"),
        (TASK + "workers: {min: 2}", "4:10", '"max" is missing in "workers"'),
        (TASK + "workers: {min: 2, max: 8, steps: 2}", "4:27", 'Did you mean "step"?'),
        (TASK + "workers: {min: 2, max: 7, step: 2}", "4:10", "one never comes to 7"),
        (TASK + "workers: {min: 2, max: 8, step: 0}", "4:33", '"workers.step": expected at least 1'),
        (SERVE + "replicas: 0", "4:11", '"replicas": may go down to 0, but not end there'),
        (SERVE + "replicas: {min: 0, max: 4, step: 2}", "4:11", '"replicas": has no step'),
        # durations and sizes
        (TASK + "max_runtime: 10 minutes", "4:14", 'expected a duration such as "10m", "1h30m", "500ms"'),
        (TASK + "max_runtime: 30m1h", "4:14", "expected a duration"),
        (TASK + "max_runtime: 1h1h", "4:14", "expected a duration"),
        (TASK + "max_runtime: '90'", "4:14", "expected a duration"),
        (TASK + "max_runtime: 0", "4:14", "expected more than 0"),
        (TASK + "max_runtime: -5", "4:14", "expected a duration between 0 and ten years"),
        (TASK + "max_runtime: 9999d", "4:14", "expected a duration between 0 and ten years"),
        (TASK + "resources: {memory: 8 gigs}", "4:21", 'expected a size such as "64GB"'),
        (TASK + "resources: {memory: 1.5}", "4:21", "expected a size"),
        (TASK + "resources: {memory: -1}", "4:21", "expected a size between 0"),
        # accelerators
        (TASK + "resources: {accelerators: 'A100:0'}", "4:27", '"A100:0" asks for no accelerator at all'),
        (TASK + "resources: {accelerators: 'A100:1.5'}", "4:27", "above one, accelerators are whole"),
        (TASK + "resources: {accelerators: 2}", "4:27", 'expected accelerators as "A100:1"'),
        (TASK + "resources: {accelerators: [A100:1, 'A100:2']}", "4:27", "names the same accelerator twice"),
        # sources and paths
        (section("serve", "{model: {source: http://x/y}}"), "3:25", '"http:" is not a known kind of source'),
        (section("serve", "{model: {source: ../m}}"), "3:25", 'may not go up with ".."'),
        (section("serve", "{model: {source: m/%2e%2e/n}}"), "3:25", "encoded separator"),
        (section("serve", "{model: {source: 'a\\b'}}"), "3:25", "a backslash"),
        (section("serve", "{model: {source: 'run://A b'}}"), "3:25", 'expected "run://NAME"'),
        (section("serve", "{model: {source: 's3://'}}"), "3:25", "nothing follows"),
        (section("serve", "{model: {source: 'package:x'}}"), "3:25", 'expected "package:NAME/PATH"'),
        (section("serve", "{model: {source: 'model://m@new'}}"), "3:25", "a version being a number"),
        # a value that would change nothing is not taken
        (TASK + "workdir: /etc", "4:10", "expected a relative path"),
        (TASK + "workdir: a/../../b", "4:10", 'may not go up with ".."'),
        (TASK + "workdir: ~", "4:10", ""),
        (TASK + "workdir: ~/x", "4:10", "expected a relative path"),
        (TASK + "workdir: sha256:12", "4:10", "expected a relative path"),
        (TASK + "notify: [http://x]", "4:10", '"notify[0]": expected an https:// address, got "http://x"'),
        (TASK + "envs: {1A: x}", "4:8", '"envs.1A": expected the name of an environment variable'),
        (section("train", "{base_model: m, datasets: [{path: d, columns: {txt: a}}]}"), "3:55", 'Did you mean "text"?'),
        # exactly one of, and what goes together
        (section("train", "{}"), "3:8", 'expected exactly one of "base_model"'),
        (section("train", "{base_model: m, loop: a:b}"), "3:8", 'expected exactly one of "base_model"'),
        (section("train", "{loop: a:b, method: lora}"), "3:28", '"train.method": goes with "base_model"'),
        (section("train", "{loop: a b}"), "3:15", 'expected "module:name"'),
        (section("train", "{base_model: m}"), "3:8", 'expected at least one data set with "split: train"'),
        (section("train", "{base_model: m, datasets: [{path: d}], config: {a: 1}}"), "3:55", 'goes with "loop"'),
        (
            section("train", "{base_model: m, datasets: [{path: d}], objective: classify}"),
            "3:58",
            '"classify" does not fit task "causal-lm"; fitting: sft, dpo, distill',
        ),
        (
            section("train", "{base_model: m, datasets: [{path: d}], method: full, lora: {r: 1}}"),
            "3:67",
            '"train.lora": goes with "method: lora"',
        ),
        (
            section("train", "{base_model: m, datasets: [{path: d}], evaluation: {on: test}}"),
            "3:64",
            'no data set has "split: test"',
        ),
        (
            section("train", "{base_model: m, datasets: [{path: d}], evaluation: {on: train, metrics: [accuracy]}}"),
            "3:81",
            '"accuracy" says nothing of causal-lm; fitting: loss, perplexity',
        ),
        (
            section("train", "{base_model: m, datasets: [{path: d}], micro_batch_size: none}"),
            "3:65",
            'expected "auto" or a whole number',
        ),
        (
            section("train", "{base_model: m, datasets: [{path: d}], global_batch_size: 4}") + "workers: 1..8",
            "3:66",
            '"train.global_batch_size": too small for 8 workers',
        ),
        (
            section("train", "{base_model: m, datasets: [{path: d}], training_args: {bf16: true, fp16: true}}"),
            "3:62",
            "bf16 and fp16 exclude each other",
        ),
        (TRAIN + "publish: {to: b}", "4:10", 'an adapter needs "train.method: lora"'),
        (TRAIN + "publish: {to: b, when: loss is low}", "4:24", "expected a comparison of a metric with a number"),
        (section("serve", "{}"), "3:8", 'expected exactly one of "model"'),
        (section("serve", "{app: 'a:B', adapters: [{name: x, source: y}]}"), "3:31", 'goes with "model"'),
        (section("serve", "{model: {source: m}, engine_kwargs: {dtype: int8}}"), "3:52", "expected one of 'auto'"),
        (
            section("serve", "{model: {source: m}, engine_kwargs: {quantization: awq}}"),
            "3:59",
            "int8",
        ),
        (section("serve", "{model: {source: m}, engine_kwargs: {max_model_length: 9}}"), "3:45", '"max_model_len"?'),
        (section("serve", "{model: {source: m}, args: {a: 1}}"), "3:35", 'goes with "app"'),
        (
            section("serve", "{model: {source: m}, adapters: [{name: x, source: y}, {name: x, source: z}]}"),
            "3:39",
            "two adapters have the same name",
        ),
        (
            SERVE + "autoscaling: {bounds: [{cron: 61 * * * *, min: 1, max: 2}]}",
            "4:31",
            "out of range 0..59 for minute",
        ),
        (SERVE + "slo: {}", "4:6", "expected ttft_p95, tpot_p95 or both"),
        (SERVE + "slo: {ttft_p95: 1s, latency_p95: 3s}", "4:34", "keep one form"),
        (SERVE + "slo: {ttft_p95: 500}", "4:17", "expected at most 60, got 500"),
        (SERVE + "slo: {latency_p95: 600s}", "4:20", "an answer takes 10m at most (request_timeout)"),
        (SERVE + "slo: {tpot_p95: 50us}", "4:17", "expected a duration such as"),
        (SERVE + "slo: {tpot_p95: 0.00005}", "4:17", "expected at least 0.001"),
        (SERVE + "slo: {ttft: 1s}", "4:7", '"ttft" in "slo". Did you mean "ttft_p95"?'),
        (section("serve", "{app: 'a:B'}") + "slo: {ttft_p95: 1s}", "4:17", "which an app does not answer"),
        (SERVE + "autoscaling: {forecast: sometimes}", "4:25", "expected on or off"),
        (TASK + "schedule: {cron: 0 0 31 2 *}", "4:18", "is never due: it asks for day 31, and the longest of its"),
        (section("task", "{run: []}"), "3:13", '"task.run": may not be empty'),
        (section("task", "{run: [1]}"), "3:14", '"task.run[0]": expected text, got 1'),
        # the text itself
        (TASK + "name: b", "4:1", 'the key "name" is here twice. It stands at 1:1'),
        ("name: a\nname: b\nkind: task\nname: c\ntask: {run: [x]}", "2:1", 'the key "name" is here twice'),
        (TASK + "envs: {8: x}", "4:8", "a key must be text"),
        (TASK + "envs: {[a]: x}", "4:8", "a key must be text"),
        (TASK + "envs: &e {A: b}\nx: {<<: *e}", "5:5", "merge keys (<<) are not read"),
        (TASK + "envs: *nothing", "4:7", "the alias *nothing has no anchor before it"),
        (TASK + "envs: &e [*e]", "4:11", "the alias *e has no anchor before it"),
        (TASK + "envs: !!python/object/apply:os.system [x]", "4:7", "is not allowed"),
        (TASK + "envs: {A: !!binary aGk=}", "4:11", "is not allowed"),
        ("name: [a\nkind: task\n", "2:5", "not valid YAML"),
        ("name: a\n  kind: task\n", "2:7", "not valid YAML: mapping values are not allowed"),
        ("name: 'a\n", "2:1", "not valid YAML"),
        ("name: \x00", "1:1", "not valid YAML"),
        ("name: " + "9" * 5000, "1:7", "the number is too large"),
        ("name: 1e999", "1:7", "the number is too large"),
        (TASK + "priority: 99999999999999999999", "4:11", "the number is too large"),
    ],
)
def test_bad_input_is_refused_with_its_place(text, place, words):
    if text == TASK + "workdir: ~":
        assert load(text)[0].workdir is None
        return
    matching = [problem for problem in refusal(text).problems if words in str(problem)]
    assert matching, said(text)
    assert matching[0].where == f"a.yaml:{place}"


@pytest.mark.parametrize(
    "value",
    [
        "AKIAABCDEFGHIJKLMNOP",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-proj-abcdefghijklmnopqrstuvwx",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.x",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_literal_key_is_refused_with_a_hint_and_never_repeated(value):
    for text in (TASK + f"envs: {{X: '{value}'}}", section("task", f"{{run: [curl, '{value}']}}")):
        error = refusal(text)
        assert "looks like a key" in str(error) and "secrets: [NAME]" in str(error)
        assert value not in str(error)


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DB_PASSWORD"])
def test_a_variable_named_like_a_key_is_refused_whatever_it_holds(name):
    error = refusal(TASK + f"envs: {{{name}: s3cr3t-value}}")
    assert f'"{name}" looks like a key' in str(error)
    assert "s3cr3t-value" not in str(error)


def test_ordinary_variables_are_text_and_whole_numbers():
    spec = load(TASK + "envs: {OMP_NUM_THREADS: 1, TOKENIZERS_PARALLELISM: 'false', MODE: offline, EMPTY: ''}")[0]
    assert spec.envs == {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MODE": "offline", "EMPTY": ""}
    assert "put quotes around it" in str(refusal(TASK + "envs: {A: true}"))
    assert "put quotes around it" in str(refusal(TASK + "envs: {A: 1.10}"))
    assert "set by llmsched itself" in str(refusal(TASK + "envs: {RAY_AUTH_TOKEN_PATH: x}"))


def test_the_words_of_yaml_1_2_are_read_as_people_mean_them():
    spec = load(
        """
        name: a
        kind: train
        train:
          base_model: m
          datasets: [{path: d}, {path: e, split: on}]
          evaluation: {on: on}
          training_args: {learning_rate: 2e-4, weight_decay: .1}
        """
    )[0].dump()["train"]
    assert spec["evaluation"]["on"] == "on"
    assert (spec["training_args"]["learning_rate"], spec["training_args"]["weight_decay"]) == (0.0002, 0.1)


def test_json_is_read_as_well_as_yaml():
    text = '{"name": "a", "kind": "task",\n "task": {"run": ["x"]}, "prioriti": 3}'
    assert said(text) == ['a.yaml:2:26: unknown key "prioriti" in a task workload. Did you mean "priority"?']


def test_an_alias_repeats_a_part_and_errors_in_it_point_to_where_it_is_written():
    text = TASK + "envs: &e {A: b}\n---\nname: b\nkind: task\ntask: {run: &words [x, y], setup: *words}\n"
    task = load(text)[1].dump()["task"]
    assert (task["run"], task["setup"]) == (["x", "y"], ["x", "y"])
    assert said(section("task", "{run: &words [x, 1], setup: *words}")) == [
        'a.yaml:3:24: "task.run[1]": expected text, got 1',
        'a.yaml:3:24: "task.setup[1]": expected text, got 1',
    ]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: " + "[" * 33 + "]" * 33,
        "a: " + "[" * 100_000,
        "a: " + "{a: " * 60_000,
        "- " * 100_000,
        "? " * 100_000,
        "a: &a {b: 1}\n" + "".join(f"c{i}: *a\n" for i in range(65)),
        "x: " + "y" * 256 * 1024,
        "a: [" + "1," * 60_000 + "]",
        "".join(f"&a{i} " for i in range(1000)),
    ],
    ids=[
        "billion laughs",
        "deep",
        "deep list",
        "deep map",
        "dashes",
        "questions",
        "aliases",
        "large",
        "many",
        "anchors",
    ],
)
def test_a_hostile_text_is_refused_at_once(text):
    error = refusal(text)
    assert error.problems[0].code in ("too_large", "invalid_spec")


def test_a_file_with_very_many_problems_names_the_first_hundred_or_so():
    keys = "name: a\nkind: task\n" + "".join(f"k{number}: 1\n" for number in range(5000))
    assert said(keys)[99:] == [
        'a.yaml:101:1: unknown key "k98" in a task workload. Known keys: '
        + ", ".join(sorted(keys_of(KINDS["task"])))
        + ".",
        "a.yaml:102:1: and 4901 more problems from here on",
    ]
    many = "---\n".join(["name: A\nkind: task\nx: 1\n"] * 900)
    assert said(many)[-1].endswith("not looked at, after 103 problems before it")
    assert len(said(many)) == 104


def test_thirty_two_levels_are_read():
    loop = section("train", "{loop: 'a:b', config: {a: " + "[" * 28 + "1" + "]" * 28 + "}}")
    assert load(loop)[0].name == "a"


def test_bytes_that_are_not_text_are_refused():
    for data in (b"\xff\xfe\xfa", b"name: \xc3\x28", b"\x00"):
        with pytest.raises(SpecError):
            load(data, "a.yaml")


@pytest.mark.parametrize("name", ["my-loop", "anything"])
def test_a_dump_loads_again_as_the_same_spec_and_the_same_bytes(name):
    spec = load(documents("promised.yaml")[name])[0]
    assert load_json(spec.dump()) == spec
    assert load_json(spec.written()) == spec
    assert json.dumps(load_json(json.loads(json.dumps(spec.dump()))).dump()) == json.dumps(spec.dump())


def test_problems_in_json_have_json_paths():
    with pytest.raises(SpecError) as caught:
        load_json({"name": "a", "kind": "train", "train": {"base_model": "m", "datasets": [{"pth": "d"}]}}, "$[2]")
    assert [problem.where for problem in caught.value.problems] == [
        "$[2].train.datasets[0]",
        "$[2].train.datasets[0].pth",
    ]


@pytest.mark.parametrize(
    "data", [None, [], "x", 3, {}, {"kind": {}}, {1: 2}, {"a": {3: 4}}, {"a": float("nan")}, {"a": b""}]
)
def test_json_that_is_no_workload_is_refused(data):
    with pytest.raises(SpecError):
        load_json(data)


def test_json_is_bounded_like_yaml():
    deep: dict[str, object] = {}
    for _ in range(40):
        deep = {"a": deep}
    for data in (deep, {"a": [0] * 60_000}):
        with pytest.raises(SpecError) as caught:
            load_json(data)
        assert caught.value.code == "too_large"
