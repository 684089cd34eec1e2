"""The head of a request, as the proxy before the gateway passes it on: with a key where a token was, and no upgrade."""

from __future__ import annotations

from typing import NamedTuple

from llmsched.spec.endpoint_keys import PREFIX, key_of

_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


class Head(NamedTuple):
    """Of one request, as it was written."""

    method: bytes
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]

    def to_bytes(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.method, self.target, self.version.encode())]
        lines += [b"%s: %s" % header for header in self.headers]
        return b"\r\n".join([*lines, b"", b""])

    def has(self, name: bytes, value: bytes) -> bool:
        """Among the comma-separated values of all headers of that name."""
        given = (text for header, text in self.headers if header.lower() == name)
        return any(one.strip().lower() == value for text in given for one in text.split(b","))


def shown_to_gateway(head: Head) -> Head:
    """The same request, with a key in the place of what is none; what is no bearer's goes."""
    kept = []
    for name, value in head.headers:
        if name.lower() == b"authorization":
            scheme, _, shown = value.decode("latin-1").strip().partition(" ")
            shown = shown.strip()
            if scheme.lower() != "bearer" or not shown:
                continue
            value = f"Bearer {shown if shown.startswith(PREFIX) else key_of(shown)}".encode("latin-1")
        kept.append((name, value))
    return head._replace(headers=kept)


def without_upgrade(head: Head) -> Head:
    """The same request in the protocol that it is written in; whoever asks for another one must do without."""
    kept = []
    for name, value in head.headers:
        if name.lower() == b"connection":
            words = [one.strip() for one in value.split(b",")]
            value = b", ".join(one for one in words if one.lower() not in _UPGRADE_HEADERS)
        if name.lower() not in _UPGRADE_HEADERS and (value or name.lower() != b"connection"):
            kept.append((name, value))
    return head._replace(headers=kept)
