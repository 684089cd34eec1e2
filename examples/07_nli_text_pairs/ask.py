"""Asks the endpoint what follows from a text. `python ask.py "dog: a domesticated animal" "This is an animal."`"""

import os
import sys
from pathlib import Path

import httpx

from llmsched import Client
from llmsched.spec.endpoint_keys import key_of

PAIRS = [
    ("payment: a sum of money paid or a claim discharged", "This is cost."),
    ("payment: a sum of money paid or a claim discharged", "This is nonpayment."),
    ("payment: a sum of money paid or a claim discharged", "This is price."),
]

home = Path(os.environ.get("LLMSCHED_HOME", "~/.llmsched")).expanduser()
token = os.environ.get("LLMSCHED_TOKEN") or (home / "token").read_text().strip()
pairs = [tuple(sys.argv[1:3])] if len(sys.argv) > 2 else PAIRS
answer = httpx.post(
    f"{Client().health().urls['endpoint']}/v1/classify",
    json={"model": "nli", "input": [{"text": text, "text_pair": pair} for text, pair in pairs]},
    headers={"authorization": f"Bearer {key_of(token)}"},
    timeout=30,
)
if not answer.is_success:  # it says why in words, for instance that no replica is there yet
    sys.exit(answer.json()["error"]["message"])
for (text, pair), found in zip(pairs, answer.json()["data"], strict=True):
    print(f"{found['label']:>13} {found['scores'][found['label']]:.0%}  {text} | {pair}")
