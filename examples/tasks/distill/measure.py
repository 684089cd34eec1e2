"""What a student of few labels and a teacher came to on 600 reviews that were held out, beside the labels alone."""

from __future__ import annotations

import json

from llmsched import Client


def main() -> None:
    client = Client()
    found = {name: client.status(f"distill-{name}").metrics["eval.accuracy"] for name in ("student", "alone")}
    print(json.dumps({"number": found["student"], "baseline": found["alone"]}))


if __name__ == "__main__":
    main()
