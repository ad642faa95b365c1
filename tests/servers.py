"""Servers on this machine, for tests: object stores, a proxy that fails, a Dask cluster.

Each is a context manager that gives what it is once it answers. They listen on the loopback
alone, keep their data in memory, and end with the test.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2hunter2hunter2"
CEPH_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
AZURITE_ACCOUNT = "devstoreaccount1"
# Public: every azurite has this key, and Azure's own documentation prints it.
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """An object store that answers."""

    scheme: str
    endpoint: str
    options: dict[str, Any]
    """Storage options for fsspec."""
    environment: dict[str, str]
    """The same, as the environment of a process."""
    secret: str = SECRET

    def bucket(self) -> str:
        """Make an empty bucket; give its URL."""
        import fsspec

        name = f"bucket-{uuid.uuid4()}"
        fsspec.filesystem(self.scheme, **self.options).mkdir(name)
        return f"{self.scheme}://{name}"

    def behind(self, endpoint: str) -> Server:
        """Give the same server as it is reached through a proxy."""
        return _azure(endpoint) if self.scheme == "az" else _s3(endpoint)


def _s3(endpoint: str) -> Server:
    return Server(
        scheme="s3",
        endpoint=endpoint,
        options={"key": "AKIATESTKEY", "secret": SECRET, "endpoint_url": endpoint},
        environment={
            "AWS_ACCESS_KEY_ID": "AKIATESTKEY",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": endpoint,
        },
    )


def _azure(endpoint: str) -> Server:
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
        f"BlobEndpoint={endpoint}/{AZURITE_ACCOUNT};"
    )
    return Server(
        scheme="az",
        endpoint=endpoint,
        options={"connection_string": connection},
        environment={"AZURE_STORAGE_CONNECTION_STRING": connection},
        secret=AZURITE_KEY,
    )


def without_credentials() -> dict[str, str]:
    """Give this process's environment without what would open somebody's storage."""
    keep = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "AZURE_"))
    }
    return {**keep, "AWS_EC2_METADATA_DISABLED": "true"}


def moments(n: int, *few: int) -> list[int]:
    """Choose the moments of ``n`` at which to fail: a few, or all with ``HISTOSTORE_FULL=1``."""
    return list(range(n)) if os.environ.get("HISTOSTORE_FULL") == "1" else list(few)


@contextmanager
def moto() -> Iterator[Server]:
    """Run moto, which speaks S3 but keeps no access rules."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield _s3(f"http://{host}:{port}")
    finally:
        server.stop()


def missing_ceph() -> str:
    """Name the programs of Ceph that are not installed."""
    return ", ".join(name for name in CEPH_PROGRAMS if shutil.which(name) is None)


CEPH_CONF = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
mon data = {folder}/mon
osd data = {folder}/osd
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
log file = {folder}/run/$name.log
run dir = {folder}/run
ms bind msgr2 = false
mon max pg per osd = 500
# One monitor has no one to wait for: by default each change to the cluster's maps takes a second.
paxos propose interval = 0.02
paxos min wait = 0.01
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw dynamic resharding = false
"""


@contextmanager
def ceph(folder: Path) -> Iterator[Server]:
    """Run one node of Ceph with its S3 gateway: a real object store, signatures checked."""
    fsid, osd, port, mon_port = str(uuid.uuid4()), str(uuid.uuid4()), free_port(), free_port()
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir(parents=True)
    conf = folder / "ceph.conf"
    conf.write_text(CEPH_CONF.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port))
    use, monmap = ("-c", str(conf)), str(folder / "monmap")
    limit = time.monotonic() + 60

    def once(*command: str) -> str:
        done = subprocess.run(
            [*command, *use], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def up() -> bool:
        try:
            told = once("ceph", "osd", "stat", "--format", "json")
        except RuntimeError:
            # On a busy machine the monitor may turn a question away; from some time on it answers.
            if time.monotonic() > limit:
                raise
            return False
        return bool(json.loads(told)["num_up_osds"])

    with ExitStack() as stack:
        address = f"[v1:127.0.0.1:{mon_port}]"
        make_map = ("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address)
        once(*make_map, monmap)
        once("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        stack.enter_context(running("ceph-mon", "-i", "a", "-f", *use))
        once("ceph", "--connect-timeout", "30", "osd", "new", osd)
        once("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        for _ in range(5):
            daemon = stack.enter_context(running("ceph-osd", "-i", "0", "-f", *use))
            # It may ask the monitor before it has learnt the cluster's id, and then gives up.
            while daemon.poll() is None and not up():
                time.sleep(0.2)
            if daemon.poll() is None:
                break
        stack.enter_context(running("radosgw", "-n", "client.rgw.a", "-f", *use))
        server = _s3(f"http://127.0.0.1:{port}")
        await_answer(server.endpoint)
        keys = ("--access-key", server.options["key"], "--secret-key", SECRET)
        once("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test", *keys)
        yield server


@contextmanager
def azurite() -> Iterator[Server]:
    """Run azurite, Microsoft's own emulator of Azure's blob storage."""
    port = free_port()
    command = ("azurite-blob", "--blobPort", str(port), "--inMemoryPersistence", "--silent")
    server = _azure(f"http://127.0.0.1:{port}")
    with running(*command, "--skipApiVersionCheck", "--disableTelemetry"):
        await_answer(server.endpoint)
        yield server


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(*command: str, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside the test, and end it with the block."""
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **settings}
    process = subprocess.Popen(command, **settings)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_answer(endpoint: str, seconds: float = 60) -> None:
    """Wait until a server answers, whatever it says."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{endpoint} does not answer")


# A Dask cluster ---------------------------------------------------------------------------


@contextmanager
def scheduler(folder: Path, *, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run a Dask scheduler; give its address."""
    address = f"tcp://127.0.0.1:{(port := free_port())}"
    command = (sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1")
    with running(*command, "--port", str(port), "--no-dashboard", cwd=folder, env=environment):
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield address


def worker(
    address: str, folder: Path, *, environment: dict[str, str] | None = None
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a Dask worker of one thread in a folder of its own, with no nanny to revive it."""
    folder.mkdir(exist_ok=True)
    command = (sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1")
    local = ("--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--local-directory", ".")
    return running(*command, *local, cwd=folder, env=environment)


# A proxy that counts, and fails when it is told to -----------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request that came by."""

    number: int
    kind: str
    """``list``, or the method: ``GET``, ``HEAD``, ``PUT``, ``POST``, ``DELETE``."""
    path: str


Fault = Callable[[Asked], "str | float | None"]
"""Say what to do: ``busy`` answers 503, ``drop`` hangs up, ``lose`` forwards and then hangs up,
a number waits so many seconds first, None just forwards."""

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce</Message></Error>"
_HOP = {"connection", "keep-alive", "transfer-encoding", "server", "date"}


@dataclass
class Proxy:
    """What came by so far, and the fault in force."""

    endpoint: str = ""
    fault: Fault | None = None
    asked: list[Asked] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def note(self, method: str, target: str) -> Asked:
        """Keep a request."""
        parts = urlsplit(target)
        lists = method == "GET" and {"list-type", "prefix"} & set(parse_qs(parts.query))
        kind = "list" if lists else method
        with self.lock:
            asked = Asked(number=len(self.asked), kind=kind, path=parts.path)
            self.asked.append(asked)
        return asked

    def counts(self) -> dict[str, int]:
        """Count the requests since the last call, by kind."""
        with self.lock:
            found = Counter(asked.kind for asked in self.asked)
            self.asked.clear()
        return dict(found)


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Stand between a client and a server."""
    state = Proxy()
    handler = type("Handler", (_Handler,), {"state": state, "upstream": urlsplit(upstream).netloc})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Proxy
    upstream: str

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = self.state.note(self.command, self.path)
        fault = self.state.fault(asked) if self.state.fault else None
        if isinstance(fault, float):
            time.sleep(fault)
        if fault == "busy":
            self._answer(503, [("Content-Type", "application/xml")], BUSY)
            return
        if fault == "drop":
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        # The client may have given up, or the test be over: nothing stays open either way.
        with suppress(OSError, http.client.HTTPException, ValueError), closing(connection):
            headers = {key: value for key, value in self.headers.items() if key != "Connection"}
            connection.request(self.command, self.path, body, headers)
            with connection.getresponse() as answer:
                content = answer.read()
            if fault == "lose":
                self.close_connection = True
            else:
                self._answer(answer.status, answer.getheaders(), content)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        head = self.command == "HEAD"
        self.send_response_only(status)
        for key, value in headers:
            if key.lower() not in _HOP and (head or key.lower() != "content-length"):
                self.send_header(key, value)
        if not head:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815 - as http.server wants

    def log_message(self, *_: object) -> None:
        """Say nothing."""
