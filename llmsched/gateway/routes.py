"""Which path is answered by what: a model of a task, or an app, which is code of its user.

OpenAI's routes that no task answers are an app's: the request's `model` names it, and it gets the request at the same
path below its own, `/v1/audio/speech` as `/v1/apps/NAME/audio/speech`.
"""

from __future__ import annotations

from typing import NamedTuple

from llmsched.gateway.limits import AUDIO_BYTES, BODY_BYTES, MEDIA_BYTES

V1 = "/v1/"
APPS = "/v1/apps/"


class ModelRoute(NamedTuple):
    """`name`: the replica's. `most`: bytes of a request. `is_form`: its body is one, not JSON."""

    name: str
    most: int
    is_form: bool = False


MODEL_ROUTES = {
    "/v1/chat/completions": ModelRoute("chat/completions", MEDIA_BYTES),
    "/v1/completions": ModelRoute("completions", BODY_BYTES),
    "/v1/embeddings": ModelRoute("embeddings", BODY_BYTES),
    "/v1/classify": ModelRoute("classify", MEDIA_BYTES),
    "/v1/audio/transcriptions": ModelRoute("audio/transcriptions", AUDIO_BYTES, is_form=True),
}
# With what there is instead for who names a model.
APP_ROUTES = {
    "/v1/audio/speech": "no model here speaks",
    "/v1/audio/translations": "no model here translates what it hears",
    "/v1/images/generations": "no model here draws",
    "/v1/images/edits": "no model here draws",
    "/v1/images/variations": "no model here draws",
    "/v1/moderations": "POST /v1/classify answers with the labels of a model",
    "/v1/responses": "POST /v1/chat/completions answers chats of a model",
}


def is_of_model(path: str) -> bool:
    """Whether no app can be asked there: what code of a user does twice may matter."""
    return path.startswith(V1) and not path.startswith(APPS) and path not in APP_ROUTES
