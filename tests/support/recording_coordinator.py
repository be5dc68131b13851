"""The recording coordinator, which can be made to die at a message.

Run as a program: ``recording_coordinator.py RECORD DEATH ARGUMENT...``; ARGUMENT... are those of
`synthedge-coordinator`, DEATH is described in `deaths`.
"""

import sys
from pathlib import Path
from typing import BinaryIO

from deaths import die_at
from synthedge_deploy.recorder import Recorder, run_recorded


class MortalRecorder(Recorder):
    """Writes down each message, and dies where it was told to."""

    def __init__(self, file: BinaryIO, death: str) -> None:
        super().__init__(file)
        self._death = death

    def on_message(self, method: str) -> None:
        die_at(self._death, method, "before")

    def on_answer(self, method: str) -> None:
        die_at(self._death, method, "after")


if __name__ == "__main__":
    death = sys.argv[2]
    run_recorded(lambda file: MortalRecorder(file, death), Path(sys.argv[1]), sys.argv[3:])
