"""The gateway's HTTP server: uvicorn, with connections on which nobody shows a key bounded as at the API."""

from __future__ import annotations

from typing import Any

import uvicorn

from llmsched.connections import Waiting, connections_of, make_room
from llmsched.gateway.limits import BODY_BYTES

WAITING_AT_MOST, WAITING_OF_ONE_ADDRESS = 4096, 2048  # more than at the API: clients come in bursts, through one proxy


def web_server(application: Any) -> uvicorn.Server:
    """For an ASGI application; lets this process open as many files as that takes."""
    make_room()
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=connections_of(Waiting(WAITING_AT_MOST, WAITING_OF_ONE_ADDRESS)),
            ws="websockets-sansio",
            ws_max_size=BODY_BYTES,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
        )
    )
