"""Has each digit drawn 20 times: whether a judge reads it, and whether it is more than a learnt one drawn again."""

import base64
import io
import json

import numpy as np
from PIL import Image
from prepare import HELD_OUT
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from llmsched import Client

EACH, _SEED = 20, 7
digits = load_digits()
pixels, labels = digits.data / 16, digits.target
learnt, unseen = pixels[:-HELD_OUT], pixels[-HELD_OUT:]
judge = SVC(gamma=0.25, C=10).fit(pixels, labels)
chance, chat = np.random.default_rng(_SEED), Client().chat("draw-api")


def drawn(label: int) -> np.ndarray:
    """[EACH, pixels], by the endpoint, as OpenAI's clients ask it."""
    asked = {"model": "draw-api", "prompt": f"a handwritten {label}", "n": EACH, "seed": label}
    files = [base64.b64decode(each["b64_json"]) for each in chat.post(asked, "images/generations")["data"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(file)), float).ravel() / 255 for file in files])


def by_bell(label: int) -> np.ndarray:
    one = learnt[labels[:-HELD_OUT] == label]
    made = chance.multivariate_normal(one.mean(0), np.cov(one.T), EACH, method="svd")
    return np.clip(made, 0, 1)


def tell(part: str, number: float, baseline: float) -> None:
    print(json.dumps({"part": part, "number": number, "baseline": baseline}))


made, simple = ([way(label) for label in range(10)] for way in (drawn, by_bell))
tell(
    "right",
    *(float(np.mean([judge.predict(some) == label for label, some in enumerate(way)])) for way in (made, simple)),
)
near = NearestNeighbors(n_neighbors=1).fit(learnt)
far, usual = (near.kneighbors(some)[0].mean() for some in (np.concatenate(made), unseen))
tell("new", float(far / usual), 0.0)
