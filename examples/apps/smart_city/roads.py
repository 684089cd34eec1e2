"""Streets as cameras see them and as people report them: pictures that are drawn, and sentences that are made.

No package has pictures of roads with what stands on them, so these are no more than a road, its lines, and cars and
lorries from above, in noise; in fog they are hardly brighter or darker than the road. Five vehicles in sight are a jam.
One camera in eight is blind. What people report is in words that nobody learnt.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

SIZE, ROAD, LANES = 32, (6, 26), (7, 14, 21)  # pixels: a picture's side, the road's edges, the left of each lane
VEHICLES = {"car": (4, 5), "lorry": (4, 10)}  # width, length
MOST, JAM, FOG, BLIND = 8, 5, 0.3, 8
TRAIN, TEST, _SEED = 1500, 120, 7
LEARNT = {
    "jam": """
        nothing moves here; we are stuck in traffic; long queue, bumper to bumper; it takes an hour for a mile;
        complete standstill; the traffic jam gets longer; cars are waiting in three lanes; do not drive this way;
        we have stood still since seven; slower than walking; all lanes are blocked; heavy traffic, take another road;
        the queue goes back to the station; we inch forward; terrible delays this morning;
        the bus is late, too many cars""",
    "free": """
        the road is clear; no cars at all; traffic flows; we got through at once; empty street today;
        quick drive, no delay; hardly anybody is on the road; green lights all the way; quiet, not a car in sight;
        no queue at the lights; easy ride into town; there is no traffic; we were early, all went well;
        plenty of room on every lane; nobody in front of us; fast and pleasant, as on a Sunday""",
}
REPORTED = {
    "jam": """
        been sitting here for twenty minutes; gridlock again; I could walk faster than this; every lane is full;
        tailback up to the bridge; we crawl along; avoid it, solid traffic; has not budged since eight""",
    "free": """
        smooth ride this morning; it was deserted; wide open, drove straight through; never been so quiet; no hold-ups;
        arrived early, no queues; you have it all to yourself; moving nicely""",
}


def write(folder: Path) -> None:
    """eyes.jsonl with boxes, words/learnt.jsonl, and streets.jsonl: what is asked, and whether it is a jam."""
    from PIL import Image

    (folder / "eyes").mkdir(parents=True, exist_ok=True)
    (folder / "words").mkdir(exist_ok=True)
    streets = []
    for name, count in (("train", TRAIN), ("test", TEST)):
        chance, rows = random.Random(f"{_SEED}{name}"), []
        for number in range(count):
            pixels, objects = street(chance)
            is_blind = name == "test" and number % BLIND == 0
            file = f"eyes/{name}-{number}.png"
            Image.fromarray(nothing(number) if is_blind else pixels).save(folder / file)
            rows.append({"image": file, "objects": [] if is_blind else objects})
            is_jam = len(objects) >= JAM
            report = chance.choice(sentences(REPORTED["jam" if is_jam else "free"]))
            known = {"vehicles": len(objects), "jam": is_jam, "is_blind": is_blind}
            streets.append({"image": file, "report": report, **known})
        if name == "train":
            dump(folder / "eyes.jsonl", [row for row in rows if row["objects"]])
    dump(folder / "streets.jsonl", streets[-TEST:])
    learnt = [{"text": text, "means": means} for means, some in LEARNT.items() for text in sentences(some)]
    dump(folder / "words" / "learnt.jsonl", learnt)


def sentences(some: str) -> list[str]:
    return [" ".join(each.split()) for each in some.split(";")]


def street(chance: random.Random) -> tuple[Any, list[dict[str, Any]]]:
    """Pixels [SIZE, SIZE, 3], and what stands where."""
    drawn = np.full((SIZE, SIZE), 60.0)
    drawn[:, ROAD[0] : ROAD[1]] = 110
    for line in (13, 20):
        drawn[::4, line] = 170
    contrast = FOG if chance.random() < 0.3 else 1.0
    objects: list[dict[str, Any]] = []
    wanted = chance.randrange(MOST + 1)
    for _ in range(200):
        if len(objects) == wanted:
            break
        label = chance.choice(["car", "car", "lorry"])
        wide, long = VEHICLES[label]
        left, top = chance.choice(LANES) + chance.randrange(2), chance.randrange(SIZE - long)
        box = [left, top, left + wide, top + long]
        if all(apart(box, each["box"]) for each in objects):
            paint = chance.choice([-80, -60, 90, 130]) * contrast
            drawn[top : top + long, left : left + wide] = 110 + paint
            drawn[top + 1, left : left + wide] = 110 + paint / 3  # its window
            objects.append({"label": label, "box": box})
    noise = np.random.default_rng(chance.randrange(1 << 32)).normal(0, 12, (SIZE, SIZE))
    return np.stack([np.clip(drawn + noise, 0, 255).astype(np.uint8)] * 3, -1), objects


def nothing(number: int) -> Any:
    return np.stack([np.random.default_rng(number).integers(0, 60, (SIZE, SIZE), dtype=np.uint8)] * 3, -1)


def apart(one: list[int], other: list[int]) -> bool:
    """By a pixel at least."""
    return one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def write_model(folder: Path) -> None:
    """A small SegFormer without weights."""
    import transformers

    transformers.SegformerImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[24, 48], sr_ratios=[4, 2], strides=[1, 2],
        patch_sizes=[5, 3], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=48,
        hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
    ).save_pretrained(folder)  # fmt: skip


def dump(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
