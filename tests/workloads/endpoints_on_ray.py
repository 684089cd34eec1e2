"""Two things of endpoints once on a real Ray, by hand: python tests/workloads/endpoints_on_ray.py [split | surge]

    split   prompts read by another endpoint (`serve.prefill`), with a vLLM that is a fake one: processes of their own,
            Ray Serve, the gateway and the order of things are real, and no GPU is asked
    surge   `rollout: {max_surge: 0}` on a cluster whose one GPU the old replica holds, while three clients ask

Prints what was seen, as JSON; ends with 1 where something is not as it should be. Ends everything it starts. About a
minute each; CI has the same without Ray (test_inference_prefill.py, test_control_registry.py).
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import tiny_models
import vllm_on_wires

from llmsched import Client

TOLD_WITHIN_S = 60.0
ENDPOINT = {"kind": "serve", "resources": {"accelerators": "A100:1", "cpus": 1, "memory": "1GB"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("split", "surge"), default=["split", "surge"])
    given = parser.parse_args()
    seen = {}
    for name in given.what:
        with tempfile.TemporaryDirectory(prefix="llms") as folder:
            Path(folder).chmod(0o755)  # Ray may run as another user, who is to read the model
            os.environ["LLMSCHED_HOME"] = str(Path(folder) / "home")
            seen[name] = {"split": split, "surge": surge}[name](Path(folder))
    print(json.dumps(seen, indent=2))
    sys.exit(not all(one["as_it_should_be"] for one in seen.values()))


def model_in(folder: Path) -> str:
    made = tiny_models.llama(folder / "model")
    for file in made.iterdir():
        file.chmod(0o644)
    return str(made)


def llmsched(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "llmsched.cli.main", *words], check=True, stdout=subprocess.DEVNULL)


def apply(folder: Path, *specs: dict, more: tuple[str, ...] = ()) -> None:
    file = folder / "specs.json"
    file.write_text("\n---\n".join(json.dumps(spec) for spec in specs))
    llmsched("apply", "-f", str(file), "--wait", *more)


class Asker:
    def __init__(self) -> None:
        with Client() as client:
            self._url = f"{client.health().urls['endpoint']}/v1/completions"
        self._key = (Path(os.environ["LLMSCHED_HOME"]) / "token").read_text().strip()

    def answer(self, prompt: str) -> tuple[str, int]:
        """What is said, and how many tokens of the prompt another one had read."""
        body = {"model": "chat", "prompt": prompt, "max_tokens": 4, "temperature": 0}
        answer = httpx.post(self._url, json=body, headers={"authorization": f"Bearer {self._key}"}, timeout=100)
        answer.raise_for_status()
        said = answer.json()
        return said["choices"][0]["text"], said["usage"]["prompt_tokens_details"]["cached_tokens"]

    def answer_by(self, prompt: str, another: bool) -> tuple[str, int]:
        """The same, once another one reads the prompts, or nobody: the gateway hears that a moment after people do."""
        until = time.monotonic() + TOLD_WITHIN_S
        while True:
            said, read = self.answer(prompt)
            if (read == len(prompt)) == another or time.monotonic() > until:
                return said, read
            time.sleep(0.2)

    async def keep_asking(self, count: int, over: asyncio.Event) -> dict[str, int]:
        """How many answers of which status `count` clients get until it is over."""
        statuses: dict[str, int] = {}
        headers = {"authorization": f"Bearer {self._key}"}

        async def one(http: httpx.AsyncClient) -> None:
            while not over.is_set():
                body = {"model": "chat", "prompt": "abcdef", "max_tokens": 4}
                try:
                    status = str((await http.post(self._url, json=body)).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                statuses[status] = statuses.get(status, 0) + 1

        async with httpx.AsyncClient(headers=headers, timeout=200) as http:
            await asyncio.gather(*(one(http) for _ in range(count)))
        return statuses


def split(folder: Path) -> dict:
    vllm_on_wires.install(folder / "packages")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "packages"), *sys.path[:1]])
    model = {"model": {"source": model_in(folder)}, "engine": "vllm"}
    reader = ENDPOINT | {"name": "reader", "serve": model | {"role": "prefill"}}
    chat = ENDPOINT | {"name": "chat", "serve": model | {"prefill": {"endpoint": "reader", "from_tokens": 1}}}
    llmsched("up", "--nodes", "1x2:A100", "--env", "PYTHONPATH")
    try:
        apply(folder, reader, chat)
        asker = Asker()
        told = {"read by the reader": asker.answer_by("abcdef", True)}
        with Client() as client:
            client.cancel("reader")
            told["without a reader"] = asker.answer_by("abcdef", False)
            why = " ".join(one.text for one in client.why("chat").scaling)
        apply(folder, reader, more=("--again",))  # what has been cancelled begins another run
        told["with a new one"] = asker.answer_by("abcdef", True)
    finally:
        llmsched("down", "--purge", "--yes")
    wanted = {"read by the reader": ("fedc", 6), "without a reader": ("fedc", 4), "with a new one": ("fedc", 6)}
    is_named = '"reader" (serve.prefill) is stopped' in why
    return {"answers": told, "why": why, "as_it_should_be": told == wanted and is_named}


def surge(folder: Path) -> dict:
    source = model_in(folder)
    spec = ENDPOINT | {"name": "chat", "serve": {"model": {"source": source}}, "rollout": {"max_surge": 0}}
    llmsched("up", "--nodes", "1x1:A100")
    try:
        apply(folder, spec)
        asker = Asker()

        async def roll() -> tuple[dict[str, int], float]:
            over = asyncio.Event()
            asking = asyncio.create_task(asker.keep_asking(3, over))
            await asyncio.sleep(1.0)  # so that some are in flight when it begins; any time does
            began = time.monotonic()
            changed = spec | {"serve": spec["serve"] | {"engine_kwargs": {"max_num_seqs": 3}}}
            try:
                await asyncio.to_thread(apply, folder, changed)
                took = time.monotonic() - began
                await asyncio.sleep(1.0)
            finally:
                over.set()
            return await asking, took

        statuses, took = asyncio.run(roll())
        with Client() as client:
            view = client.status("chat")
            story = [line.text for line in client.story("chat").lines]
    finally:
        llmsched("down", "--purge", "--yes")
    is_right = set(statuses) == {"200"} and view.answered == 2 and view.size == 1
    return {"answers": statuses, "took_s": round(took, 1), "story": story, "as_it_should_be": is_right}


if __name__ == "__main__":
    main()
