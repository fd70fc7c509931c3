"""An object store for tests: moto's S3 server, a process of its own on this machine."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
from fork_server import free_port

START_SECONDS = 60  # on a busy machine; 3 to 6 alone


class Bucket(NamedTuple):
    """A bucket of the server.

    Attributes:
        name: of the bucket.
        client: a boto3 client of the server.
    """

    name: str
    client: Any

    @property
    def url(self) -> str:
        """`s3://<bucket>`."""
        return f"s3://{self.name}"

    def names(self) -> list[str]:
        """Keys of all objects, in sorted order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Content of an object."""
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a running S3 server; it ends with the tests."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(address, server)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_environment(s3_server: str) -> dict[str, str]:
    """Variables that lead the streaming library and boto3 to the server."""
    return {
        "S3_ENDPOINT_URL": s3_server,  # read by the streaming library
        "AWS_ENDPOINT_URL": s3_server,  # read by boto3: nothing leaves this machine by mistake
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def bucket(
    s3_server: str, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """An empty bucket; the environment leads this process and its children to the server."""
    import boto3

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    _post(f"{s3_server}/moto-api/reset")
    made = Bucket("shards", boto3.session.Session().client("s3", endpoint_url=s3_server))
    made.client.create_bucket(Bucket=made.name)
    return made


def _wait_for(address: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the S3 server ended with code {server.returncode}"
        try:
            urlopen(f"{address}/moto-api/", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the S3 server did not answer in {START_SECONDS} s")


def _post(address: str) -> None:
    urlopen(address, data=b"", timeout=30).close()
