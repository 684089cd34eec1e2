"""A storage of each kind: a folder, and S3 by moto's server on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsched.runtime import storage as module
from llmsched.runtime.storage import Storage


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "folder":
        yield Storage.at(tmp_path / "storage")
        return
    address = request.getfixturevalue("s3_address")
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    module._s3_client.cache_clear()
    bucket = f"b{uuid.uuid4().hex}"
    module._s3_client().create_bucket(Bucket=bucket)
    yield Storage.at(f"s3://{bucket}/team/llmsched")
    module._s3_client.cache_clear()
