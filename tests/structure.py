"""What ruff does not check: no Python file beyond 500 lines, no name in the product that nothing uses, and no test that
waits for so short a time that a slow machine would miss it.

    python tests/structure.py

Prints one line a finding and ends with 1 when there is any. A name counts as used where the product's code names it, in
a string too: commands, policies and executors' methods are looked up by name. What a library calls or reads stands in
CALLED_BY_OTHERS, with who does.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from vulture.core import Vulture

from llmsched.policies.registry import FAMILIES, class_name

ROOT = Path(__file__).parents[1]
PRODUCT = ("llmsched", "workloads", "examples")
MOST_LINES = 500

# Longer ones, which may only shrink. Take a line out when its file is short enough.
LONGER: dict[str, int] = {}

DECORATORS = [
    "@api.*",
    "@model_validator",
    "@field_validator",
    "@model_serializer",
    "@*router.*",
    "@click.*",
    "@*.command*",
]
CALLED_BY_OTHERS: dict[str, str] = {
    "_push_model_ids_info": "Serve, of multiplexed models",
    "training_step": "Lightning",
    "configure_optimizers": "Lightning",
    "on_train_batch_end": "Lightning",
    "on_fit_end": "Lightning",
    "pl_module": "Lightning",
    "batch_idx": "Lightning",
    "on_init_end": "transformers, of a callback",
    "on_train_begin": "transformers, of a callback",
    "on_log": "transformers, of a callback",
    "on_step_end": "transformers, of a callback",
    "on_save": "transformers, of a callback",
    "on_train_end": "transformers, of a callback",
    "should_save": "transformers, of a callback",
    "should_evaluate": "transformers, of a callback",
    "async_openai": "code of users, in a workload",
    "trial_id": "ray.tune, of a trial",
    "get_live_trials": "ray.tune, of a controller",
    "get_trials": "ray.tune, of a controller",
    "Voice": "a spec, by serve.app",
    "do_POST": "http.server",
    "log_message": "http.server",
    "Forecaster": "a spec, by serve.app",
    "Marker": "a spec, by serve.app",
    "Painter": "a spec, by serve.app",
    "pre_tokenizer": "tokenizers",
    "post_processor": "tokenizers",
    "Espeak": "a spec, by serve.app",
    "Kokoro": "a spec, by serve.app",
    "House": "a spec, by serve.app",
    "Tutor": "a spec, by serve.app",
    "Ranker": "a spec, by serve.app",
    "Monitor": "a spec, by serve.app",
    "pause_writing": "asyncio, of a protocol",
    "resume_writing": "asyncio, of a protocol",
    "on_message_begin": "httptools",
    "on_url": "httptools",
    "on_header": "httptools",
    "on_headers_complete": "httptools",
    "on_body": "httptools",
    "on_message_complete": "httptools",
    "daemon_threads": "socketserver",
    "request_queue_size": "socketserver",
    "checkpoint_upload_mode": "ray.train",
    "try_trigger_scaling": "ray.data",
    "on_executor_shutdown": "ray.data",
    "get_total_resources": "ray.data",
    "enable_progress_bars": "ray.data",
    "get_all_reported_checkpoints": "ray.train",
    "consistency_mode": "ray.train",
    "get_preemption_info": "ray.train",
    "_torch_device_manager": "ray.train",
    "__getattr__": "Python",
    "__dir__": "Python",
    "momentum": "torch, of a batch norm",
    "__class__": "torch: a packed weight says that it is a parameter",
    "format_commands": "click",
    "list_commands": "click",
    "get_command": "click",
    "create_system": "zipfile",
    "persistent_id": "pickle",
    "persistent_load": "pickle",
    "compress_type": "zipfile",
    "seekable": "zipfile",
    "should_exit": "uvicorn",
    "Tidy": "examples/13_batch/spec.yaml",
    "TAKEN": "tests: the contract page's table of reasons",
    "handshake_complete": "uvicorn",
    "reconfigure": "Ray Serve",
    "_send_user_result_over_asgi": "Ray Serve",
    "running_replicas_populated": "Ray Serve: what a Router is",
    "assign_request": "Ray Serve",
    "choose_replica": "Ray Serve",
    "dispatch": "Ray Serve",
    "get_rejection_response": "Ray Serve: what a ReplicaResult is",
    "to_object_ref": "Ray Serve",
    "to_object_ref_async": "Ray Serve",
    "to_object_ref_gen": "Ray Serve",
    "capture_signals": "uvicorn",
    "ray_version": "Ray's client of its Jobs API",
    "start_time": "Ray's client of its Jobs API",
    "end_time": "Ray's client of its Jobs API",
    "backend_cls": "Ray Train",
    "framework": "Ray Train",
    "share_cuda_visible_devices": "Ray Train",
    "on_shutdown": "Ray Train",
    "train_run_context": "Ray Train",
    "after_controller_start": "Ray Train",
    "pad_token": "transformers",
    "base_model_name_or_path": "peft",
    "VIEWER": "a role, known by its name in a token",
    "changed_ns": "the key of a cache",
    "age_s": "policies of other packages: what a View tells",
    "WAITS": "tests: the contract page's table of reasons",
    "copy_of": "tests: a state of its own, to decide beside the first",
    "read_only": "tests: reads a store beside its controller",
    "NodeKind": "tests: of the fake cluster",
    "ManualClock": "tests: the clock that a test owns",
    "MemoryStore": "tests: the store without a disk",
    "advance": "tests: of ManualClock",
    "lose_node": "tests: of the fake cluster",
    "take_away": "tests: of the fake cluster",
    "start_anew": "tests: of the fake cluster",
}

# Methods and functions that are told by place how long they wait, and keywords of others beside `timeout`.
WAITS_BY_PLACE = ("wait", "wait_for", "join", "result", "timeout")
WAITS_BY_WORD = {"wait": ("timeout", "timeout_s"), "connect": ("open_timeout",)}


def main() -> int:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True)
    names = tracked.stdout.split()
    found = [*too_long(names), *dead_names(), *short_waits(names)]
    print("\n".join(found) if found else "structure: files are short enough, names are used, tests wait long")
    return 1 if found else 0


def too_long(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        file = ROOT / name
        lines = file.read_text("utf-8").count("\n") if file.exists() else 0
        if lines > LONGER.get(name, MOST_LINES):
            yield f"{name}: {lines} lines, at most {LONGER.get(name, MOST_LINES)}; split it by its ideas"
        if name in LONGER and lines <= MOST_LINES:
            yield f"{name}: {lines} lines are enough now; take it out of LONGER in {Path(__file__).name}"


def short_waits(names: Iterable[str]) -> Iterator[str]:
    """Waits in tests of more than 3 s and less than 60 s, in figures. Less is a pause, or what a test is about."""
    for name in names:
        if not (ROOT / name).exists():
            continue
        if name.startswith("tests/") and not name.startswith(("tests/benchmarks/", "tests/core/", "tests/gpu/")):
            for line, called in waits_of(ast.parse((ROOT / name).read_text("utf-8"))):
                yield f"{name}:{line}: a slow machine misses the bound of {called}; wait for PATIENCE_S of waiting.py"


def waits_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [word.value for word in node.keywords if word.arg in WAITS_BY_WORD.get(called, ("timeout",))]
            given += node.args if called in WAITS_BY_PLACE else []
            for one in given:
                if isinstance(one, ast.Constant) and type(one.value) in (int, float) and 3 < one.value < 60:
                    yield node.lineno, called


def dead_names() -> Iterator[str]:
    files = [file for folder in PRODUCT for file in sorted((ROOT / folder).rglob("*.py"))]
    words = {word for file in files for word in words_in_strings(ast.parse(file.read_text("utf-8")))}
    words |= {class_name(name) for names in FAMILIES.values() for name in names}
    scan = Vulture(ignore_decorators=DECORATORS)
    scan.scavenge([str(file) for file in files])
    unused = set()
    for item in scan.get_unused_code(min_confidence=60):
        unused.add(item.name)
        if item.name not in words and item.name not in CALLED_BY_OTHERS:
            yield f"{item.filename.relative_to(ROOT)}:{item.first_lineno}: nothing uses {item.typ} {item.name}"
    for name in CALLED_BY_OTHERS.keys() - unused:
        yield f"{Path(__file__).name}: {name} is used or gone; take it out of CALLED_BY_OTHERS"


def words_in_strings(tree: ast.AST) -> Iterator[str]:
    """Identifiers in string constants, those of docstrings left out."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            is_text = isinstance(child, ast.Constant) and isinstance(child.value, str)
            if is_text and not isinstance(node, ast.Expr):
                yield from re.findall(r"[A-Za-z_]\w*", child.value)


if __name__ == "__main__":
    sys.exit(main())
