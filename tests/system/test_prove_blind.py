"""The proof that the coordinator is blind, and that it would notice if it were not."""

import subprocess
import sys

import numpy as np
import pytest

from synthedge_deploy.blindness import Canaries, found_in, memory_of, prove


@pytest.mark.slow
def test_no_trace_of_a_canary_is_in_the_coordinators_files_log_messages_or_memory() -> None:
    result = prove(lambda line: None)
    assert result["received_by_recipient"] == result["canaries"]
    assert result["sealed_bytes_held"] > 0
    assert min(result["searched_bytes"].values()) > 0
    assert result["searched_bytes"]["memory at the end"] > 10_000_000


def test_a_canary_in_the_memory_of_a_process_is_found() -> None:
    canaries = Canaries.new()
    hold = (
        "import sys; held = sys.stdin.readline(); print('held', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert not found_in(memory_of(process.pid), canaries)
        process.stdin.write(canaries.ids[0].encode() + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        assert found_in(memory_of(process.pid), canaries)
        process.stdin.write(b"\n")


@pytest.mark.parametrize("form", ["id", "text", "float64", "float32 row"])
def test_every_form_of_a_canary_is_found(form: str) -> None:
    canaries = Canaries.new()
    planted = {
        "id": canaries.ids[0].encode(),
        "text": f"bp={canaries.values[0, 0]:.6f};".encode(),
        "float64": canaries.values.tobytes(),
        "float32 row": canaries.values.astype(np.float32).tobytes(),
    }[form]
    assert found_in(b"x" * 1_000 + planted, canaries)
    assert not found_in(b"x" * 1_000, canaries)
