"""Sends one message to one https address, which a user chose: never into the operator's own network.

The name is looked up once, every address that it has must be public, and the connection goes to one of those, with the
name checked against the certificate: a name that changes its address in between leads nowhere else. No redirect is
followed, no proxy asked, nothing of the answer read but its status.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import socket
import ssl
import unicodedata
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from llmsched.errors import RequestError

LONGEST_S = 10.0  # from the look-up to the status
AGAIN = (408, 425, 429)  # of the 4xx, those that may go better later
SIGNATURE, STAMP, DELIVERY = "X-Llmsched-Signature", "X-Llmsched-Timestamp", "X-Llmsched-Delivery"


class Undelivered(Exception):
    """`for_good`: another try would end the same way."""

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.message, self.for_good = message, for_good


def host_of(url: str) -> str:
    """As it is compared and shown: the rest of an address may be a secret. Digits and dots of other scripts are those
    that a resolver takes them for."""
    return unicodedata.normalize("NFKC", urlsplit(url).hostname or "").replace("\u3002", ".").rstrip(".")


def check(url: str, allowed: Collection[str]) -> None:
    """Raises RequestError for an address that is no https address, or one that is not public as it stands: what a name
    leads to is only known when it is used. `allowed`: hosts to which the operator lets webhooks go all the same."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"is no address ({error})") from None
    host = host_of(url)
    if parts.scheme != "https" or not host or port == 0:
        raise _refused("is no https address")
    if parts.username is not None:
        raise _refused("has a user in it; a secret address goes in a secret: url_from")
    if host in allowed:
        return
    if not _HOST.fullmatch(host) and ":" not in host:
        raise _refused(f"has no name of a host, {host}")
    if (
        host == "localhost"
        or host.endswith((".localhost", ".local", ".internal"))
        or "." not in host
        and ":" not in host
    ):
        raise _refused(f"leads to a private host, {host}", _ASK)
    try:
        literal = _literal(host)
    except OSError:
        if host.rpartition(".")[2].isdigit():
            raise _refused(f"has no name of a host, {host}: numbers alone are an address, and this is none") from None
        return
    if not is_public(literal):
        raise _refused(f"leads to a private address, {host}", _ASK)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Also in the short, octal and hexadecimal ways of writing one that resolvers take. Raises OSError for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return ipaddress.IPv4Address(socket.inet_aton(host))


# Letters of any script, as a browser takes them.
_HOST = re.compile(r"(?!-)[\w-]{1,63}(?:\.[\w-]{1,63})*")
_ASK = "Have an operator list the host under limits.notify_hosts of the cluster file."


def _refused(what: str, hint: str = "") -> RequestError:
    hint = hint or "Write it as https://HOST/PATH."
    return RequestError(f"an address of notify {what}.", code="notify_address", hint=hint)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is one of the whole internet. An address of version 6 that stands for one of version 4 is as that."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in net for net in _WITH_ONE_OF_VERSION_4):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


# NAT64, and the two older ways of writing one of version 4, which some systems still lead there.
_WITH_ONE_OF_VERSION_4 = [ipaddress.IPv6Network(each) for each in ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")]


def signed(body: bytes, key: str, at: float) -> dict[str, str]:
    """Headers: when, and HMAC-SHA256 of "SECONDS.BODY" under the key."""
    stamp = str(int(at))
    digest = hmac.new(key.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {STAMP: stamp, SIGNATURE: f"sha256={digest}"}


async def post(url: str, body: bytes, headers: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raises Undelivered, and RequestError for an address that `check` refuses."""
    check(url, allowed)
    try:
        async with asyncio.timeout(LONGEST_S):
            status = await _post(url, body, headers, allowed)
    except TimeoutError:
        raise Undelivered(f"no answer within {LONGEST_S:.0f} s") from None
    if 200 <= status < 300:
        return
    for_good = 300 <= status < 500 and status not in AGAIN
    raise Undelivered(f"it answered HTTP {status}", for_good=for_good)


async def _post(url: str, body: bytes, headers: Mapping[str, str], allowed: Collection[str]) -> int:
    import httpx  # who has nobody to tell need not have it in memory

    parts, host = urlsplit(url), host_of(url)
    address = await _address_of(host, parts.port or 443, host in allowed)
    place = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{place}:{parts.port or 443}", fragment="").geturl()
    headers = {"Host": parts.netloc, "Content-Type": "application/json", "User-Agent": "llmsched", **headers}
    context = ssl.create_default_context()  # of the system, where an operator's own authority stands
    try:
        async with (
            httpx.AsyncClient(verify=context, trust_env=False, timeout=LONGEST_S) as client,
            client.stream("POST", target, content=body, headers=headers, extensions={"sni_hostname": host}) as answer,
        ):
            return answer.status_code
    except (httpx.HTTPError, ssl.SSLError, OSError, ValueError) as error:
        what = str(error).replace(target, host) or type(error).__name__
        raise Undelivered(f"{host} could not be reached: {what[:200]}") from None


async def _address_of(host: str, port: int, is_allowed: bool) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Undelivered(f"{host} is not known: {error}") from None
    addresses = [str(row[4][0]) for row in found]
    if not is_allowed and not all(is_public(ipaddress.ip_address(each)) for each in addresses):
        raise _refused(f"leads to a private address: {host}", _ASK)
    return addresses[0]
