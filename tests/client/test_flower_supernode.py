"""The SuperNode process that a site's runner starts: it ends with any of its parts, so that it can be started again."""

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

from synthedge_deploy.consortium import free_port
from synthedge_protocols.certificates import create_ca, issue_server_certificate, pem
from synthedge_protocols.flower_app import prepare_flower
from synthedge_protocols.keys import TlsKey

pytestmark = pytest.mark.slow
ANSWERS = {
    "activate-node": ActivateNodeResponse(node_id=5).SerializeToString(),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True).SerializeToString(),
    "pull-messages": PullMessagesResponse().SerializeToString(),
}


@contextmanager
def superlink(folder: Path, failing: str) -> Iterator[int]:
    """What answers a SuperNode's calls as a SuperLink does, all but one."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            call = self.path.rpartition("/")[2]
            body = b"" if call == failing else ANSWERS.get(call, b"")
            self.send_response(500 if call == failing else 200)
            self.send_header("Content-Type", "application/protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    now, key = datetime.now(UTC), TlsKey.generate()
    ca_key, ca = create_ca("test", now=now)
    (folder / "ca.pem").write_bytes(pem(ca))
    (folder / "server.pem").write_bytes(
        key.pem() + pem(issue_server_certificate(ca_key, ca, key, names=["127.0.0.1"], now=now))
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("failing", ["pull-messages", "send-node-heartbeat"])
def test_a_supernode_whose_loop_or_sign_of_life_ended_does_not_stay(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 32)
    (tmp_path / "node.key").write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    prepare_flower()
    with superlink(tmp_path, failing) as port:
        node = subprocess.run(
            [
                *(sys.executable, "-m", "synthedge_client.flower_supernode"),
                *("--superlink", f"127.0.0.1:{port}"),
                *("--root-certificates", str(tmp_path / "ca.pem")),
                *("--auth-supernode-private-key", str(tmp_path / "node.key")),
                *("--host", "127.0.0.1", "--port", str(free_port())),
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(tmp_path / "secret")),
            ],
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert node.returncode == 1
    assert b"SuperNode ID: 5" in node.stdout + node.stderr
    assert b"500" in node.stdout + node.stderr
