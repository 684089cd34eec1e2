"""Secrets: values that specs name, sealed in the store under a key that never goes there.

AES-256-GCM; a value is bound to its owner and name, so a row copied to another place does not open. Everyone has
secrets of their own, and an operator may set shared ones; one's own comes first. The key is made with the first secret,
in a file for the controller's user alone. Whoever has the store without that file has nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmsched.errors import RequestError, SpecError, StoreError
from llmsched.spec import http_models
from llmsched.store import keyfile
from llmsched.store.journal import Batch, Store
from llmsched.store.tables import SecretRow

SHARED = ""  # the owner of what everyone may use
SHORTEST = 4  # characters: a shorter value cannot be kept out of logs without tearing them apart
LONGEST = 65_536
OF_ONE = 200  # names of one owner, those that were removed too
_NONCE_BYTES = 12
_VERSION = "1:"


class Secrets(Protocol):
    """What the loop asks: is there a value of that name for that user, and what is it."""

    def has(self, user: str, name: str) -> bool: ...

    def value(self, user: str, name: str) -> str:
        """Raises RequestError when there is none, StoreError when it cannot be opened."""

    def derived(self, purpose: str) -> str:
        """A key for that alone, the same each time. Raises StoreError."""


class NoSecrets:
    """Of a controller without a vault: what it derives lasts as long as it does."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def has(self, user: str, name: str) -> bool:
        return False

    def value(self, user: str, name: str) -> str:
        raise missing([name])

    def derived(self, purpose: str) -> str:
        return _derived(self._key, purpose)


class Vault:
    """`key_file` holds 64 hex digits. `now` stamps what is set."""

    def __init__(self, store: Store, key_file: Path, now: Callable[[], float]) -> None:
        self._store = store
        self._file = key_file
        self._now = now

    def has(self, user: str, name: str) -> bool:
        return self._row(user, name) is not None

    def value(self, user: str, name: str) -> str:
        row = self._row(user, name)
        if row is None:
            raise missing([name])
        return opened(row, self._file)

    def derived(self, purpose: str) -> str:
        return _derived(self._key(), purpose)

    async def put(self, owner: str, name: str, value: str, by: str) -> http_models.SecretView:
        """On disk when it returns; the next attempt that is launched gets it. Raises SpecError, StoreError."""
        if not SHORTEST <= len(value) <= LONGEST or "\0" in value:
            raise SpecError(
                f"a secret has {SHORTEST} to {LONGEST} characters and no NUL.",
                code="secret_value",
                hint="A shorter one could not be kept out of the logs.",
            )
        is_new = self._store.row(SecretRow, owner, name) is None
        if is_new and len(self._store.rows(SecretRow, owner)) >= OF_ONE:
            raise RequestError(
                f"{OF_ONE} names of secrets were used, which is the limit.",
                code="too_many",
                hint="Set one that is there again, under its name, or that was removed.",
                http_status=429,
            )
        row = SecretRow(owner, name, self._seal(owner, name, value), by, self._now())
        await self._write(row)
        return _view(row)

    async def remove(self, owner: str, name: str, by: str) -> http_models.SecretView:
        """Raises RequestError (404) when there is none. What runs keeps the value it was given."""
        row = self._store.row(SecretRow, owner, name)
        if row is None or not row.sealed:
            raise RequestError(
                f'there is no {"shared " if owner == SHARED else ""}secret "{name}".',
                code="unknown_secret",
                hint="llmsched secret list shows them.",
                http_status=404,
            )
        await self._write(SecretRow(owner, name, "", by, self._now()))
        return _view(row)

    def known(self, user: str) -> list[http_models.SecretView]:
        """Names, never values: the user's own and the shared ones."""
        owners = dict.fromkeys((user, SHARED))
        rows = [row for owner in owners for row in self._store.rows(SecretRow, owner) if row.sealed]
        return [_view(row) for row in sorted(rows, key=lambda row: (row.name, row.owner))]

    def _row(self, user: str, name: str) -> SecretRow | None:
        for owner in (user, SHARED):
            row = self._store.row(SecretRow, owner, name)
            if row is not None and row.sealed:
                return row
        return None

    async def _write(self, row: SecretRow) -> None:
        await asyncio.wrap_future(self._store.commit(Batch(row.at, (), [row])))

    def _seal(self, owner: str, name: str, value: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._key()).encrypt(nonce, value.encode(), _bound_to(owner, name))
        return _VERSION + base64.b64encode(nonce + sealed).decode()

    def _key(self) -> bytes:
        """Made when there is none."""
        return keyfile.read(self._file, "secret_key") or self._new_key()

    def _new_key(self) -> bytes:
        """Never in place of one that others were sealed with. Whole and private from its first moment."""
        if any(row.sealed for row in self._store.rows(SecretRow)):
            raise StoreError(
                f"the key of the secrets is gone: {self._file} does not exist.",
                code="secret_key",
                hint="Put it back. To begin anew, remove every secret first: llmsched secret rm NAME",
            )
        return keyfile.make(self._file, "secret_key")


def _derived(key: bytes, purpose: str) -> str:
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()


def opened(row: SecretRow, key_file: Path) -> str:
    """The value of a sealed row. Raises StoreError when the key is gone or another one."""
    key = keyfile.read(key_file, "secret_key")
    if key is None:
        raise StoreError(
            f"the key of the secrets is gone: {key_file} does not exist.",
            code="secret_key",
            hint="Put it back, or set the secrets again.",
        )
    try:
        data = base64.b64decode(row.sealed.removeprefix(_VERSION), validate=True)
        bound = _bound_to(row.owner, row.name)
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], bound).decode()
    except (InvalidTag, ValueError):
        raise StoreError(
            f'secret "{row.name}" does not open with the key in {key_file}.',
            code="secret_key",
            hint=f"Put the key back that it was set with, or set it again: llmsched secret set {row.name}",
        ) from None


def missing(names: Iterable[str]) -> RequestError:
    """What a spec that names them is answered, and how to put it right."""
    listed = list(names)
    what = f"secret {listed[0]} is" if len(listed) == 1 else f"secrets {', '.join(listed)} are"
    commands = " and ".join(f"llmsched secret set {name}" for name in listed)
    return RequestError(f"{what} not set.", code="missing_secret", hint=f"Set it first: {commands}")


def _bound_to(owner: str, name: str) -> bytes:
    return f"{owner}\0{name}".encode()


def _view(row: SecretRow) -> http_models.SecretView:
    return http_models.SecretView(name=row.name, shared=row.owner == SHARED, set_by=row.by, set_at=row.at)
