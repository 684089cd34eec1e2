"""What the measures of several applications need: lines of the table, patience, a webhook, the plain ways."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

HERE = "127.0.0.1"


def say(part: str, number: float, baseline: float | None = None) -> None:
    line = json.dumps({"part": part, "number": number, "baseline": baseline}) + "\n"
    print(line, end="", flush=True)  # in one piece: parts may be measured side by side


def until(condition: Callable[[], Any], what: str, within_s: float = 300.0) -> Any:
    """What it answers, once that is true. Raises SystemExit that says `what` did not come."""
    late = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > late:
            raise SystemExit(f"after {within_s:g} s still waiting for this: {what}")
        time.sleep(0.2)
    return found


class Hook:
    """A webhook over https on loopback. `down` times it answers that it is down, then `heard` keeps what came."""

    def __init__(self, certificate: Path, down: int = 0) -> None:
        self.heard: list[dict[str, Any]] = []
        self.refused = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805  `self` is the hook
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                is_down = self.refused < down
                self.refused += is_down
                handler.send_response(503 if is_down else 204)
                handler.end_headers()
                if not is_down:
                    self.heard.append(body)

            def log_message(handler, *_: Any) -> None:  # noqa: N805
                pass

        server = HTTPServer((HERE, 0), Handler)
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(certificate)
        server.socket = secure.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"https://{HERE}:{server.server_port}/hook"


def write_certificate(file: Path) -> None:
    """Of this machine's loopback, with its key, for a day: whoever takes it for an authority believes the hook."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name, day = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HERE)]), timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + day)
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HERE))])
    signed = made.add_extension(here, critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file.touch(mode=0o600)
    file.write_bytes(signed.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def same(said: Sequence[str], true: Sequence[str]) -> float:
    """The share that is alike."""
    return sum(one == other for one, other in zip(said, true, strict=True)) / len(true)


def by_words(learnt: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """Labels of texts by TF-IDF and logistic regression, learnt from (text, label)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=2000))
    model.fit([text for text, _ in learnt], [label for _, label in learnt])
    return [str(label) for label in model.predict(list(texts))]


def rows_in(frame: Any, target: str) -> list[dict[str, Any]]:
    """The rows of a table as one asks about them: without the answer, and without what is not known."""
    records = frame.drop(columns=target).to_dict("records")
    return [{name: value for name, value in row.items() if value == value} for row in records]


def by_columns(learnt: Any, tested: Any, target: str, how: str) -> Any:
    """What scikit-learn says of tables (pandas.DataFrame): chances by label, or numbers where the target is of those.
    `how`: "linear" or "boosting"."""
    from pandas import DataFrame
    from pandas.api.types import is_numeric_dtype
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    of_numbers = is_numeric_dtype(learnt[target])
    model = {
        ("linear", True): lambda: RidgeCV([10.0**power for power in range(-4, 4)]),
        ("linear", False): lambda: LogisticRegression(max_iter=3000),
        ("boosting", True): lambda: HistGradientBoostingRegressor(random_state=0),
        ("boosting", False): lambda: HistGradientBoostingClassifier(random_state=0),
    }[how, of_numbers]()
    ready = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), make_column_selector(dtype_exclude="number")),
    )
    fitted = make_pipeline(ready, model).fit(learnt.drop(columns=target), learnt[target])
    asked = tested.drop(columns=target)
    return fitted.predict(asked) if of_numbers else DataFrame(fitted.predict_proba(asked), columns=fitted.classes_)
