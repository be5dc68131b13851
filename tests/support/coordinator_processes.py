"""`synthedge-coordinator` as users start it: in processes of its own."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from synthedge_server.folder import CoordinatorFolder

PROGRAM = [sys.executable, "-c", "from synthedge_server.cli import main; main()"]


def coordinator_command(*arguments: str, code: int = 0) -> str:
    """Run `synthedge-coordinator`; return its stdout, or its stderr if it must fail."""
    done = subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@asynccontextmanager
async def serving(
    folder: CoordinatorFolder, *options: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        "serve",
        f"--dir={folder.path}",
        *options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert (await process.stdout.readline()).startswith(b"ready")
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
