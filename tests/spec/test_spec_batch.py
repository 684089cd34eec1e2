"""What a spec of kind batch may say; what has no effect, or cannot work, is refused by name."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.spec.batch import BatchSpec
from llmsched.spec.compile import compile_workload
from llmsched.spec.init import starter
from llmsched.spec.load import load
from llmsched.spec.parcel import read

HEAD = "name: b\nkind: batch\n"


def test_the_starter_is_a_spec_and_a_parcel_means_the_same_again() -> None:
    (spec,) = load(starter("batch"))
    assert isinstance(spec, BatchSpec) and spec.batch.output == "s3://my-bucket/scored"
    compiled = compile_workload(spec)
    assert (compiled.kind, compiled.min_size, compiled.max_size, compiled.after) == ("batch", 1, 4, ("my-fine-tune",))
    (own,) = load(HEAD + "batch: {input: {path: a.csv}, map: 'mine:f', format: jsonl}")
    assert read(compile_workload(own).parcel).spec == own


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{input: {path: a}, model: m, map: 'a:b'}", 'expected exactly one of "model" and "map"'),
        ("{input: {path: a}}", 'expected exactly one of "model" and "map"'),
        ("{input: {path: a, columns: {text: x}}, map: 'a:b'}", "a function gets every row as it stands"),
        ("{input: {path: a}, map: 'a:b', task: feature-extraction}", '"batch.task": goes with "model"'),
        ("{input: {path: a}, map: 'a:b', engine_kwargs: {max_model_len: 9}}", '"batch.engine_kwargs": goes with'),
        ("{input: {path: a}, model: m, task: feature-extraction, args: {x: 1}}", "takes none"),
        (
            "{input: {path: a}, model: m, args: {max_token: 4}}",
            'no parameter "max_token" here. Did you mean "max_tokens"?',
        ),
        ("{input: {path: a}, model: m, args: {max_tokens: -4}}", '"max_tokens" must be a whole number from 1'),
        ("{input: {path: a}, model: m, args: {temperature: hot}}", '"temperature" must be a number from 0 to 2'),
        ("{input: {path: a}, model: m, args: {stream: true}}", '"stream" is for a request, and not for the rows'),
        (
            "{input: {path: a}, model: m, task: token-classification, engine_kwargs: {prefix_cache_mib: 9}}",
            'goes with "task: causal-lm"; a model of token-classification has no use for it',
        ),
        ("{input: {path: a}, model: m, output: out}", "expected an absolute folder or s3://BUCKET/PREFIX"),
        ("{input: {path: a, on_bad_row: drop}, model: m}", "expected one of 'refuse', 'skip'"),
        ("{input: {path: a}, model: m, outptu: /out}", 'Did you mean "output"?'),
        ("{input: {path: 'hf://a/b'}, model: m}", "a data set of a hub (hf://) is not supported yet"),
        ("{input: {path: 'hf://a/b'}, model: m}", "hf download ORG/NAME --repo-type dataset"),
        ("{input: {path: a}, model: m, task: masked-lm}", '"masked-lm" is not supported yet'),
    ],
)
def test_what_cannot_work_is_refused_by_name(section: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        load(HEAD + f"batch: {section}\n")
    assert words in str(error.value)


def test_each_run_of_a_schedule_has_answers_of_its_own() -> None:
    line = "schedule: {cron: '0 2 * * *'}\nbatch: {input: {path: a}, model: m%s}\n"
    load(HEAD + line % "")
    with pytest.raises(SpecError) as error:
        load(HEAD + line % ", output: /out")
    assert '"batch.output": is not empty any more when a schedule\'s next run begins; leave it out' in str(error.value)
