"""A bound application of which one deployment is placed by itself: where its copies are, and what they have."""

import os

import greeter
from ray import serve


@serve.deployment
class Large:
    def __init__(self):
        print("made with", os.environ["TOKEN"])

    def where(self):
        return {"pid": os.getpid(), "says": greeter.WORD}


@serve.deployment
class Desk:
    def __init__(self, large):
        self.large = large

    async def __call__(self, request):
        return {"copies": await self.large.broadcast("where").results_async()}


app = Desk.bind(Large.bind())
