"""A Ray Serve application of three deployments, as one writes it for `serve run desk:app`."""

import asyncio

import numpy as np
from fastapi import FastAPI, WebSocket
from ray import serve
from starlette.responses import StreamingResponse

api = FastAPI()


@serve.deployment
class Words:
    """Splits texts, several requests at once."""

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def __call__(self, texts: list[str]) -> list[list[str]]:
        return [text.lower().split() for text in texts]


@serve.deployment(user_config={"good": ["good", "great"], "bad": ["bad", "poor"]})
class Judge:
    """Counts words of praise, by the list of a model."""

    def reconfigure(self, words: dict[str, list[str]]) -> None:
        self.words = words

    @serve.multiplexed(max_num_models_per_replica=2)
    async def model(self, name: str) -> frozenset[str]:
        return frozenset(self.words[name])

    async def score(self, words: list[str]) -> np.float32:
        praise = await self.model(serve.get_multiplexed_model_id() or "good")
        return np.float32(np.mean([word in praise for word in words])) if words else np.float32(0)


@serve.deployment
@serve.ingress(api)
class Desk:
    def __init__(self, words, judge):
        self.words, self.judge = words, judge

    @api.post("/judge")
    async def judged(self, text: str, model: str = "good") -> dict:
        score = await self.judge.options(multiplexed_model_id=model).score.remote(self.words.remote(text))
        return {"model": model, "score": float(score)}

    @api.get("/count/{to}")
    def count(self, to: int) -> StreamingResponse:
        async def numbers():
            for number in range(to):
                yield f"{number}\n"
                await asyncio.sleep(0.1)

        return StreamingResponse(numbers(), media_type="text/plain")

    @api.websocket("/talk")
    async def talk(self, socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_json(await self.words.remote(text))


app = Desk.bind(Words.bind(), Judge.bind())

if __name__ == "__main__":
    serve.run(app)
