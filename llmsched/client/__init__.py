"""Client of a controller: `Client` in plain calls, `AsyncClient` for event loops."""

from llmsched.client.client import Chat, Client, Run
from llmsched.client.core import AsyncClient

__all__ = ["AsyncClient", "Chat", "Client", "Run"]
