"""Places for stores, and object stores on this machine, each started once for all tests that use it.

moto answers S3 in this process; Ceph's gateway is a real object store, which checks
signatures; azurite is Microsoft's own emulator. The latter two run where they are installed.
"""

from __future__ import annotations

import shutil
import uuid

import pytest

from tests import servers


@pytest.fixture(scope="session")
def moto():
    pytest.importorskip("s3fs", reason="needs the extra s3")
    pytest.importorskip("moto.server", reason="needs moto[server]")
    with servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory):
    pytest.importorskip("s3fs", reason="needs the extra s3")
    if missing := servers.missing_ceph():
        pytest.skip(f"Ceph is not installed ({missing}): see .ci/install-servers")
    with servers.ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite():
    if shutil.which("azurite-blob") is None:
        pytest.skip("azurite is not installed: see .ci/install-servers")
    pytest.importorskip("adlfs", reason="needs the extra azure")
    with servers.azurite() as server:
        yield server


@pytest.fixture(params=["moto", "ceph", "azurite"])
def server(request):
    """A server that speaks S3, or Azure's own protocol."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["moto", "ceph"])
def s3(request):
    """A server that speaks S3."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["path", "file", "memory"])
def url(request, tmp_path):
    """An empty place, on every kind of storage that needs no server."""
    return {
        "path": str(tmp_path / "store"),
        "file": (tmp_path / "store").as_uri(),
        "memory": f"memory://{uuid.uuid4()}/store",
    }[request.param]
