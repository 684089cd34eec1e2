"""Whether data and models that a spec names are there and readable, as far as this machine can reach them.

The files are a user's: they are read in a process of its own, as whom the work runs as, for a bounded time. A file that
is not on the controller's machine may be on the workers', so that is a warning; one that is and cannot be used is
refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from llmsched.control import model_files
from llmsched.control.dispatch import is_result
from llmsched.control.gpu_memory import Verdict, source_of
from llmsched.core.workload import Workload
from llmsched.errors import RequestError

LONGEST_S = 20.0
AT_ONCE = 2
ADAPTERS_AT_MOST = 100  # of one endpoint are looked at
_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")  # no secret of the controller's
_command: Sequence[str] = (sys.executable, "-P", "-m", "llmsched.data.look")
_turns = asyncio.Semaphore(AT_ONCE)


def look_with(command: Sequence[str]) -> None:
    """The words that run `llmsched.data.look`, from now on."""
    global _command
    _command = tuple(command)


async def look(verdict: Verdict, workload: Workload, spec: Mapping[str, Any], *, begins: bool) -> Verdict:
    """`verdict` with what the files say. For who may not submit this nothing is read: `spec` is {"kind": ""} then.
    `begins`: it would be a new run."""
    if verdict.refusal is not None or not spec.get("kind"):
        return verdict
    from llmsched.data.look import is_of_a_hub, place_of  # knows every kind of file, and a start needs none

    paths = _paths(spec)
    if not spec.get("workdir"):
        for source in filter(None, (source_of(spec), *paths)):
            if is_of_a_hub(source):
                return replace(verdict, refusal=_nowhere(workload, source))
    if (spec.get("serve") or {}).get("adapters"):
        doubts = await asyncio.to_thread(_of_other_bases, spec["serve"])
        verdict = replace(verdict, warnings=(*verdict.warnings, *doubts))
    here: list[str] = []
    missing: list[str] = []
    for path in paths:
        place = place_of(path, None)
        if place is not None:
            (here if model_files.is_there(place) else missing).append(path)
    base = source_of(spec) or "s3://"
    model = place_of(base, None)
    if model is not None and not model_files.is_there(model):
        missing.insert(0, base)
    if base.startswith("package:") and model is None and not any(base in each for each in verdict.warnings):
        missing.insert(0, base)
    warnings = [f"{path} is not on the controller's machine; the workers need it on theirs" for path in missing]
    output = place_of((spec.get("batch") or {}).get("output") or "s3://", None) if begins else None
    looks = bool(here) or (model is not None and model_files.is_there(model / "config.json"))
    looks = looks or (output is not None and model_files.is_in_the_way(output))
    looks = looks or bool(((spec.get("batch") or {}).get("args") or {}).get("response_format"))
    errors, notes = await _looked_at({**_part(spec, here), "begins": begins}) if looks else ([], [])
    verdict = replace(verdict, notes=tuple(notes))
    if errors and not workload.after:
        of_output = all(each.startswith("batch.output ") for each in errors)  # which says itself what to do
        hint = "" if of_output else "Mend the file or the data set's columns, format, encoding or on_bad_row."
        refusal = RequestError(f"{workload.id}: {'; '.join(errors)}", code="unusable_data", hint=hint)
        return replace(verdict, warnings=(*verdict.warnings, *warnings), refusal=refusal)
    return replace(verdict, warnings=(*verdict.warnings, *warnings, *errors))


def _of_other_bases(serve: Mapping[str, Any]) -> list[str]:
    """Adapters whose base is another one, as far as that shows here. A warning: a model may have two names, or be tuned
    from that base. A replica notices other sizes only: of equal ones it would answer nonsense."""
    serves, doubts = serve["model"]["source"], []
    if is_result(serves):
        return []
    for each in serve["adapters"][:ADAPTERS_AT_MOST]:
        if is_result(each["source"]):
            continue
        with suppress(model_files.UnknownModel):  # the workers find it, or say so
            base = model_files.base_of(each["source"])
            where = f"adapter {each['name']}: {each['source']}"
            if base is None:
                doubts.append(f"{where} names no base model, so it may be no adapter")
            elif base.partition("@")[0] != serves.partition("@")[0]:
                doubts.append(f"{where} is of {base}, and this serves {serves}: they may not fit together")
    return doubts


def _paths(spec: Mapping[str, Any]) -> list[str]:
    if spec["kind"] == "batch":
        return [spec["batch"]["input"]["path"]]
    return [each["path"] for each in (spec.get("train") or {}).get("datasets") or ()] if spec["kind"] == "train" else []


def _part(spec: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """What is asked of `llmsched.data.look`: the section, with these of its data sets."""
    if spec["kind"] in ("batch", "serve"):
        return {spec["kind"]: spec[spec["kind"]]}
    places = [index for index, each in enumerate(spec["train"].get("datasets") or ()) if each["path"] in paths]
    return {"train": spec["train"], "of": places}


def _nowhere(workload: Workload, source: str) -> RequestError:
    message = f"{workload.id}: {source} is a path, and it leads nowhere: there is no workdir that holds it."
    return RequestError(message, code="no_such_source", hint=f"Of the Hugging Face hub it is hf://{source}")


async def _looked_at(part: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is wrong with the data, and what was noticed; nothing also where nobody could say."""
    asked = json.dumps({**part, "folder": None, "is_complete": False}).encode()
    async with _turns:
        process = await asyncio.create_subprocess_exec(
            *_command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        )
        try:
            answer, _ = await asyncio.wait_for(process.communicate(asked), LONGEST_S)
            said = json.loads(answer)
            return [str(error)[:1000] for error in said["errors"]], [str(note)[:1000] for note in said["notes"]]
        except (TimeoutError, ValueError, KeyError, TypeError):
            return [], []
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
