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
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edge_cl.errors import EdgeClError
from edge_cl.pictures import name_fault
from edge_cl.recognition import Prediction
from edge_cl.runtime import Classifier
from edge_cl.video import frames

EDGE_CL = (sys.executable, "-m", "edge_cl.cli")


class CameraLoop:
    """Answers for frames, and learns from them in the background.

    Args:
        store: the learner's directory; made by the first learn.
        bundle: what answers; made of what the store knows, or by the first learn.
        pictures: frames that are taken of a thing.
        say: told what happens.
    """

    def __init__(self, store: Path, bundle: Path, *, pictures: int = 40, say: Callable[[str], None] = print) -> None:
        self.store, self.bundle, self.pictures, self.say = store, bundle, pictures, say
        if not bundle.exists() and store.exists():  # a store that knows nothing yet has none
            subprocess.run([*EDGE_CL, "export", str(bundle), "--store", str(store)], capture_output=True)
        self.classifier = Classifier(bundle) if bundle.exists() else None
        self._name = ""
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
            self.say(f"{name} has to wait: something else is being learned.")
        else:
            self._name = name
            self.say(f"Show {name} from all sides ...")

    def see(self, frame: Image.Image) -> Prediction | None:
        """Answer for a frame, and take it if a class is being taught; None where nothing is known yet."""
        if self._name:
            self._taken.append(frame)
            if len(self._taken) == self.pictures:
                self._learning = threading.Thread(target=self._learn, args=(self._name, self._taken))
                self._learning.start()
                self._name, self._taken = "", []
        return None if self.classifier is None else self.classifier.predict(np.asarray(frame))

    def wait(self) -> None:
        """Wait until what is being learned is in force."""
        if self._learning is not None:
            self._learning.join()

    def _learn(self, name: str, taken: list[Image.Image]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).mkdir()
            for i, frame in enumerate(taken):
                frame.save(Path(folder) / name / f"{i:03}.png")
            command = [*EDGE_CL, "learn", "--new-classes", folder, "--update", "--json"]
            command += ["--store", str(self.store), "--export", str(self.bundle)]
            done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.nice(10))
        if done.returncode:
            self.say(f"{name} was not learned: {done.stderr.strip()}")
            return
        if self.classifier is None:
            self.classifier = Classifier(self.bundle)
        else:
            self.classifier.reload()
        old = json.loads(done.stdout)["old_class_accuracy"]
        cost = "" if old["before"] is None else f"; the others had {old['before']:.0%} and have {old['after']:.0%}"
        self.say(f"{name} is known now{cost}.")


def main() -> None:
    """Run the loop until the source ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--store", type=Path, default=Path("edge_cl_store"))
    parser.add_argument("--bundle", type=Path, default=Path("edge_cl_bundle"))
    parser.add_argument("--pictures", type=int, default=40, help="frames that are taken of a thing")
    parser.add_argument("--every", type=float, default=0.2, help="seconds from frame to frame")
    options = parser.parse_args()

    typed: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [typed.put(line.strip()) for line in sys.stdin], daemon=True).start()
    loop, shown = CameraLoop(options.store, options.bundle, pictures=options.pictures), ""
    for _, frame in frames(options.source, every_s=options.every):
        while not typed.empty():
            if name := typed.get():
                loop.teach(name)
        answer = loop.see(frame)
        text = "nothing is known yet: type a name" if answer is None else "unknown" if answer.unknown else answer.label
        if text != shown:
            print(text, flush=True)
            shown = text
    loop.wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass  # a learn that is running goes on, or is resumed by the same command
    except EdgeClError as error:
        sys.exit("\n".join(filter(None, (*error.faults, error.mend))))
