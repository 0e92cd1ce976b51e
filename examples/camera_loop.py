"""Teach a robot by showing: name what is in view, and it is learned while the camera goes on being answered.

    python examples/camera_loop.py SOURCE [--store DIR] [--bundle DIR]

SOURCE is a camera (/dev/video0, csi://0, rtsp://...) or a video file. Type a name and Enter while a thing is in view:
the next frames are taken as pictures of it and learned by a process of its own, with a lower priority. Meanwhile the
loop answers by what it knew, and takes the new version over between two frames. The pictures are deleted then. A name
that is known gets more pictures: show it from another side. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edge_cl import Learner
from edge_cl.errors import EdgeClError
from edge_cl.pictures import name_fault
from edge_cl.recognition import Prediction
from edge_cl.runtime import Classifier
from edge_cl.video import frames


class CameraLoop:
    """Answers for frames, and learns from them in the background.

    Args:
        store: the learner's directory; made by the first learn.
        bundle: what answers; made of what the store knows, or by the first learn.
        pictures: frames that are taken of a thing.
        say: told what happens.

    Raises:
        EdgeClError: the store cannot be read or exported, or there is a bundle without the store that it was made of.
    """

    def __init__(self, store: Path, bundle: Path, *, pictures: int = 40, say: Callable[[str], None] = print) -> None:
        self.store, self.bundle, self.pictures, self.say = store, bundle, pictures, say
        self.classifier: Classifier | None = None
        if bundle.exists() and not store.exists():
            raise EdgeClError(f"There is a bundle at {bundle}, but no store at {store}.", mend="Name it: --store DIR")
        if store.exists() and Learner.open(store).classes():
            say("Bringing the bundle up to date ...")
            done = _edge_cl("export", bundle, "--store", store)
            if done.returncode:
                raise EdgeClError(done.stderr.strip())
            self.classifier = Classifier(bundle)
        self._name = self._learned = ""
        self._taken: list[Image.Image] = []
        self._learning: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a thing is being taken or learned."""
        return bool(self._name) or (self._learning is not None and self._learning.is_alive())

    def teach(self, name: str) -> None:
        """Take the next frames as pictures of a class."""
        if fault := name_fault(name):
            self.say(f"{name!r} cannot be learned: {fault}.")
        elif self.busy:
            self.say(f"Not now: type {name} again when {self._name or self._learned} is known.")
        else:
            self._name = name
            self.say(f"Show {name} from all sides ...")

    def see(self, frame: Image.Image) -> Prediction | None:
        """Answer for a frame, and take it if a class is being taught; None where nothing is known yet."""
        if self._name:
            self._taken.append(frame)
            if len(self._taken) == self.pictures:
                self._learning = threading.Thread(target=self._learn, args=(self._name, self._taken))
                self._learned, self._name, self._taken = self._name, "", []
                self._learning.start()
        return None if self.classifier is None else self.classifier.predict(np.asarray(frame))

    def wait(self) -> None:
        """Wait until what is being learned is in force; what was not shown long enough is not learned."""
        if self._name:
            self.say(f"{self._name} was not learned: {len(self._taken)} of {self.pictures} frames were seen.")
        if self._learning is not None and self._learning.is_alive():
            self.say(f"Waiting until {self._learned} is learned ...")
            self._learning.join()

    def _learn(self, name: str, taken: list[Image.Image]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).mkdir()
            for i, frame in enumerate(taken):
                frame.save(Path(folder) / name / f"{i:03}.png")
            options = ("--update", "--json", "--store", self.store, "--export", self.bundle)
            done = _edge_cl("learn", "--new-classes", folder, *options)
        if done.returncode:
            self.say(f"{name} was not learned; when this is mended, show it again. {done.stderr.strip()}")
            return
        if self.classifier is None:
            self.classifier = Classifier(self.bundle)
        else:
            self.classifier.reload()
        old = json.loads(done.stdout)["old_class_accuracy"]
        cost = "" if old["before"] is None else f"; what was known had {old['before']:.0%} and has {old['after']:.0%}"
        self.say(f"{name} is known now{cost}.")


def _edge_cl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of edge-cl with a lower priority, in a session of its own: Ctrl-C is not for it."""
    command = [sys.executable, "-m", "edge_cl.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True, preexec_fn=lambda: os.nice(10)
    )


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the loop until the source ends, or a signal does it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--store", type=Path, default=Path("edge_cl_store"))
    parser.add_argument("--bundle", type=Path, default=Path("edge_cl_bundle"))
    parser.add_argument("--pictures", type=int, default=40, help="frames that are taken of a thing")
    parser.add_argument("--every", type=float, default=0.2, help="seconds from frame to frame")
    options = parser.parse_args()
    if options.pictures < 1:
        parser.error("--pictures must be at least 1")

    signal.signal(signal.SIGTERM, _end)
    typed: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [typed.put(line.strip()) for line in sys.stdin], daemon=True).start()
    loop, shown = CameraLoop(options.store, options.bundle, pictures=options.pictures), ""
    try:
        for _, frame in frames(options.source, every_s=options.every):
            while not typed.empty():
                if name := typed.get():
                    loop.teach(name)
            answer = loop.see(frame)
            nothing = "nothing is known yet: type a name"
            text = nothing if answer is None else "unknown" if answer.unknown else answer.label
            if text != shown:
                print(text, flush=True)
                shown = text
    finally:
        loop.wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except EdgeClError as error:
        sys.exit("\n".join(filter(None, (*error.faults, error.mend))))
