"""The real program `synthedge`, killed at a given call to the coordinator.

Run as a program: ``dying_agent.py DEATH ARGUMENT...``; ARGUMENT... are those of `synthedge`, DEATH is described in
`deaths`. After a stream of answers means: after the first of them.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from deaths import die_at


def main() -> None:
    death, *arguments = sys.argv[1:]
    # Sets what gRPC reads when it is imported.
    import grpc

    import synthedge_client.connection  # noqa: F401

    class Killer(
        grpc.UnaryUnaryClientInterceptor,
        grpc.UnaryStreamClientInterceptor,
        grpc.StreamUnaryClientInterceptor,
    ):
        def intercept_unary_unary(
            self, proceed: Callable[..., Any], details: Any, request: Any
        ) -> Any:
            method = details.method.rpartition("/")[2]
            die_at(death, method, "before")
            call = proceed(details, request)
            if death == f"{method}:after":
                call.result()
                die_at(death, method, "after")
            return call

        def intercept_stream_unary(
            self, proceed: Callable[..., Any], details: Any, requests: Any
        ) -> Any:
            return self.intercept_unary_unary(proceed, details, requests)

        def intercept_unary_stream(
            self, proceed: Callable[..., Any], details: Any, request: Any
        ) -> Any:
            method = details.method.rpartition("/")[2]
            die_at(death, method, "before")
            call = proceed(details, request)
            return self._answers(method, call) if death == f"{method}:after" else call

        def _answers(self, method: str, call: Iterator[Any]) -> Iterator[Any]:
            for answer in call:
                yield answer
                die_at(death, method, "after")

    make_channel = grpc.secure_channel

    def killing_channel(*positional: Any, **named: Any) -> grpc.Channel:
        return grpc.intercept_channel(make_channel(*positional, **named), Killer())

    grpc.secure_channel = killing_channel
    sys.argv = ["synthedge", *arguments]
    from synthedge_client.cli import main as run

    run()


if __name__ == "__main__":
    main()
