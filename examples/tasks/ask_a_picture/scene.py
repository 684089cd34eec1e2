"""A question about a picture as an app: one endpoint sees what is where, another one says what is asked of it.

The second one translates the question into a short program ("many 3"), which is run on what the first one saw: it never
sees a picture, and the first one never reads a question (Yi et al. 2018, Neural-Symbolic VQA).
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException

from llmsched.runtime import calls

PLACES = ("top left", "top right", "bottom left", "bottom right")


def answer(program: str, there: dict[str, str]) -> str:
    """`there`: the digit in each place. "" for what is no program."""
    verb, _, of = program.strip().partition(" ")
    if verb == "place":
        return there.get(of, "")
    if verb == "there":
        return "yes" if of in there.values() else "no"
    return str([*there.values()].count(of)) if verb == "many" else ""


class Answers:
    """`sees`: an image-segmentation endpoint. `says`: a seq2seq-lm that makes programs of questions. `side`: pixels."""

    def __init__(self, sees: str, says: str, side: int) -> None:
        self._sees, self._says, self._middle = sees, says, side / 2

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in ("image", "question")):
            raise HTTPException(422, 'expected {"image": base64, "question": a text}')
        there = self._seen(body["image"])
        asked = [{"role": "user", "content": body["question"]}]
        program = calls.chat(self._says, asked, max_tokens=6, temperature=0)
        return {"answer": answer(program, there), "program": program.strip(), "seen": there}

    def _seen(self, image: str) -> dict[str, str]:
        """In each quarter the label of most of what was found there."""
        votes: dict[str, dict[str, float]] = {place: {} for place in PLACES}
        for each in calls.find(self._sees, [{"image": image}]):
            left, top, right, bottom = each["at"]["box"]
            place = PLACES[2 * (top + bottom > 2 * self._middle) + (left + right > 2 * self._middle)]
            weight = each["score"] * (right - left) * (bottom - top)
            votes[place][each["label"]] = votes[place].get(each["label"], 0.0) + weight
        return {place: max(some, key=lambda label: some[label]) if some else "nothing" for place, some in votes.items()}
