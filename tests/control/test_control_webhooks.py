"""Where a webhook may go, and what of an answer counts: against a real https server."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llmsched.control import webhooks
from llmsched.control.webhooks import Undelivered
from llmsched.errors import RequestError

DAY = datetime.timedelta(days=1)
HERE = ("localhost",)  # what an operator allows


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/x", "https://10.1.2.3/x", "https://192.168.0.1/x", "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x", "https://[fe80::1]/x", "https://[fd00:ec2::254]/x", "https://[::ffff:10.0.0.1]/x",
        "https://[64:ff9b::a00:1]/x", "https://[2002:a00:1::]/x", "https://0.0.0.0/x", "https://224.0.0.1/x",
        "https://127.1/x", "https://0x7f.1/x", "https://0177.0.0.1/x", "https://2130706433/x", "https://0x7f000001/x",
        "https://[::127.0.0.1]/x", "https://[::ffff:0:127.0.0.1]/x", "https://１２７.0.0.1/x", "https://127。0。0。1/x",
        "https://ⓛocalhost/x",
        "https://localhost/x", "https://localhost./x", "https://hooks/x", "https://head.internal/x", "https://me.local/x",
    ],
)  # fmt: skip
def test_what_leads_into_the_operators_network_is_refused_before_anything_is_sent(url):
    with pytest.raises(RequestError, match="private") as refused:
        webhooks.check(url, ())
    assert "limits.notify_hosts" in refused.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x", "https:///x", "https://hooks.example:0/x", "https://a.b:99999/", "https://300.1.1.1/",
        "https://localhost%00.example.com/x", "https://hooks..example/x", "https://-x.example/",
    ],
)  # fmt: skip
def test_what_is_no_https_address_is_refused(url):
    with pytest.raises(RequestError, match="address of notify"):
        webhooks.check(url, ())


def test_a_password_in_an_address_is_sent_to_a_secret():
    with pytest.raises(RequestError, match="url_from"):
        webhooks.check("https://me:key@hooks.example/x", ())


def test_public_addresses_and_those_that_an_operator_allows_pass():
    webhooks.check("https://hooks.example/services/T0/B0", ())
    webhooks.check("https://[2606:4700::1111]/x", ())
    webhooks.check("https://bücher.example/x", ())
    webhooks.check("https://chat.internal/x", ("chat.internal",))


def test_a_name_that_leads_to_a_private_address_is_found_when_it_is_used(monkeypatch):
    async def resolve(host, port, **more):
        return [(0, 0, 0, "", ("93.184.216.34", port)), (0, 0, 0, "", ("10.0.0.7", port))]

    async def story():
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        with pytest.raises(RequestError, match=r"private address: rebind\.example"):
            await webhooks.post("https://rebind.example/x", b"{}", {}, ())

    asyncio.run(story())


def test_a_signature_is_of_the_moment_and_the_body():
    headers = webhooks.signed(b'{"a":1}', "key", 1_700_000_000.9)
    digest = hmac.new(b"key", b'1700000000.{"a":1}', hashlib.sha256).hexdigest()
    assert headers == {webhooks.STAMP: "1700000000", webhooks.SIGNATURE: f"sha256={digest}"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(key and certificate, the certificate) of `localhost`, as files."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - DAY, now + DAY)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = builder.sign(key, hashes.SHA256())
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + public)
    (folder / "cert.pem").write_bytes(public)
    return folder / "both.pem", folder / "cert.pem"


class Server:
    """Answers each request with the next of `answers`, and keeps what it was sent."""

    def __init__(self, both, *answers):
        self.seen, self._answers = [], [*answers]
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(both)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "localhost", 0, ssl=self._context)
        self.url = f"https://localhost:{self._server.sockets[0].getsockname()[1]}/hook?k=v"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        self.seen.append((head, await reader.readexactly(length)))
        writer.write(self._answers.pop(0))
        await writer.drain()
        writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_message_arrives_under_the_servers_name_and_no_redirect_is_followed(certificate, monkeypatch):
    both, public = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # would fail, were it asked

    def status(line, more=b""):
        return b"HTTP/1.1 " + line + b"\r\n" + more + b"Content-Length: 0\r\n\r\n"

    async def story():
        moved = status(b"302 Found", b"Location: https://localhost:1/else\r\n")
        async with Server(
            both, OK, moved, status(b"404 Not Found"), status(b"429 Slow"), status(b"503 Busy")
        ) as server:
            await webhooks.post(server.url, b'{"text":"x"}', {"X-Llmsched-Delivery": "a/b/0"}, HERE)
            head, body = server.seen[0]
            assert head.startswith(b"POST /hook?k=v HTTP/1.1") and b"Host: localhost:" in head
            assert b"X-Llmsched-Delivery: a/b/0" in head and body == b'{"text":"x"}'
            told = []
            for _ in range(4):
                with pytest.raises(Undelivered) as failed:
                    await webhooks.post(server.url, b"{}", {}, HERE)
                told.append((failed.value.message, failed.value.for_good))
            assert told == [
                ("it answered HTTP 302", True),
                ("it answered HTTP 404", True),
                ("it answered HTTP 429", False),
                ("it answered HTTP 503", False),
            ]

    asyncio.run(story())


def test_a_certificate_that_nobody_vouches_for_is_not_believed(certificate):
    async def story():
        async with Server(certificate[0], OK) as server:
            with pytest.raises(Undelivered, match="localhost could not be reached: .*certificate") as failed:
                await webhooks.post(server.url, b"{}", {}, HERE)
            assert not failed.value.for_good and "hook" not in failed.value.message
            assert server.seen == []

    asyncio.run(story())
