"""Has each sentence spoken by two mouths and heard by one pair of ears: the words that come back right."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jiwer

from llmsched import Client

sentences = json.loads((Path(__file__).parent / "data" / "sentences.json").read_text())
client = Client()


def words(text: str) -> str:
    return " ".join(re.sub(r"[^a-z ]", "", text.lower().replace("-", " ")).split())


def right(mouth: str) -> float:
    def heard(sentence: str) -> str:
        spoken = client.chat(mouth).post({"text": sentence})
        return words(client.chat("speak-ears").post({"audio": spoken["audio"]})["text"])

    with ThreadPoolExecutor(2) as several:
        return 1 - float(jiwer.wer([words(each) for each in sentences], [*several.map(heard, sentences)]))


print(json.dumps({"number": right("speak"), "baseline": right("speak-plain")}))
