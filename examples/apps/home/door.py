"""Faces at the door, as an app: where they are in a picture. The cascade is OpenCV's, of scikit-image (BSD)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import skimage
from skimage.feature import Cascade
from starlette.exceptions import HTTPException

from llmsched.data import media
from llmsched.data.messages import Unusable
from workloads.tasks import media as pixels

SIDE, AROUND = 100, 30  # pixels: of a picture as it is looked at, and of its border


class Door:
    def __init__(self) -> None:
        file = Path(skimage.__file__).parent / "data" / "lbpcascade_frontalface_opencv.xml"
        self._cascade = Cascade(str(file))

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"image": base64}` -> `{"faces": [[left, top, right, bottom], ...]}`, as parts of its sides."""
        image = body.get("image")
        if not isinstance(image, str):
            raise HTTPException(422, 'a picture is {"image": base64}')
        try:
            picture = pixels.image(media.of_text(image)).convert("L").resize((SIDE, SIDE))
        except Unusable as error:
            raise HTTPException(422, f'"image" {error}; a picture is {{"image": base64}}') from None
        seen = np.pad(np.asarray(picture), AROUND, mode="edge")
        found = self._cascade.detect_multi_scale(
            seen, scale_factor=1.1, step_ratio=1, min_size=(60, 60), max_size=(160, 160)
        )
        boxes = ((one["c"], one["r"], one["c"] + one["width"], one["r"] + one["height"]) for one in found)
        return {"faces": [[round((each - AROUND) / SIDE, 3) for each in box] for box in boxes]}
