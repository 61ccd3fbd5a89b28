"""What a replica of each engine holds in memory, once it has loaded, warmed up and answered.

    python -m bench.replica_memory [--quick]

One replica after another, as the node runs them, each with a small model: scikit-learn's breast_cancer, 100 trees or a
logistic regression, some 100 kB. Figures are resident memory (RSS) of the replica's process, its share of the pages
that it has in common with others included; `pss_mb_...` in the context divides those among their holders. Also the
control plane, the router, and the process that examines artifacts after it has met every engine; that one leaves when
nobody pushes. Scikit-learn imports pandas where it is installed, and with it 45 MB and more: the context tells.
"""

from __future__ import annotations

import json
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import joblib
import lightgbm
import skops.io
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import models
from bench.harness import Bar, descendants, parser, report, rss_mb, say, scratch
from bench.product import Product, product

REPLICA_MB = 120.0
"""Bar of a replica, without its model."""
ROUTER_MB = 120.0
REQUESTS = 200
SCORER = """
class Model:
    inputs = [("x", "FP32", (-1, 30))]
    outputs = [("y", "FP32", (-1,))]

    def predict(self, inputs):
        return inputs["x"].sum(axis=1)
"""


def artifacts(folder: Path) -> dict[str, tuple[str, Path, dict[str, object]]]:
    """Name -> engine, file, options of its version."""
    x, y = load_breast_cancer(return_X_y=True)
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    trees = xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1).fit(x, y)
    leaves = lightgbm.LGBMClassifier(n_estimators=100, n_jobs=1, verbose=-1).fit(x, y)
    files = {name: folder / name for name in ("model.ubj", "model.txt", "model.skops", "model.joblib", "model.py")}
    trees.save_model(files["model.ubj"])
    leaves.booster_.save_model(files["model.txt"])
    skops.io.dump(linear, files["model.skops"])
    joblib.dump(linear, files["model.joblib"])
    files["model.py"].write_text(SCORER)
    return {
        "onnx": ("onnx", models.trees(folder / "model.onnx"), {}),
        "xgboost": ("xgboost", files["model.ubj"], {}),
        "lightgbm": ("lightgbm", files["model.txt"], {}),
        "python": ("python", files["model.py"], {}),
        "sklearn_pickle": ("sklearn", files["model.joblib"], {"trust": True}),
        "sklearn": ("sklearn", files["model.skops"], {}),
    }


def pss_mb(pid: int) -> float:
    """Proportional memory of one process: pages that several hold count by parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def ask(running: Product, name: str, key: str) -> None:
    """Have the model answer requests of one row and of many, so that what it keeps for them is there."""
    url = f"http://127.0.0.1:{running.http_port}/v2/models/{name}"
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def call(path: str, body: bytes | None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=10) as reply:
            return bytes(reply.read())

    tensor = json.loads(call("", None))["inputs"][0]
    for k in range(REQUESTS):
        rows = 64 if k % 10 == 0 else 1
        given = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": [rows, 30], "data": [1.5] * 30 * rows}
        call("/infer", json.dumps({"inputs": [given]}).encode())


def examiner_pids(control_pid: int) -> list[int]:
    """The processes in which the control plane has artifacts examined."""
    return [pid for pid in descendants(control_pid) if b"server.examine" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main() -> None:
    parser(__doc__).parse_args()
    figures: dict[str, float | None] = {}
    bars: list[Bar] = []
    context: dict[str, object] = {"pandas_installed": find_spec("pandas") is not None}
    with scratch() as folder, product(folder / "up") as running:
        found = artifacts(folder)
        key = str(running.call("POST", "/api/v1/keys", {"tenant": "default", "role": "viewer"})["result"]["text"])
        for name, (engine, file, options) in found.items():
            model = name.replace("_", "-")
            version = running.push(model, file, engine=engine, **({"options": options} if options else {}))
            running.deploy(model, version)
            ask(running, model, key)
            (pid,) = (i["pid"] for i in running.deployment(model, version)["instances"] if i["state"] == "ready")
            model_mb = file.stat().st_size / 1e6
            figures[f"rss_mb_{name}"] = rss_mb(pid)
            context[f"pss_mb_{name}"] = round(pss_mb(pid), 1)
            context[f"model_mb_{name}"] = round(model_mb, 3)
            bars.append(Bar(f"rss_mb_{name}", at_most=REPLICA_MB + model_mb))
            say(f"  {name}: {figures[f'rss_mb_{name}']:.1f} MB, of which its own {context[f'pss_mb_{name}']} MB")
        figures["rss_mb_router"] = running.router_rss_mb()
        bars.append(Bar("rss_mb_router", at_most=ROUTER_MB))
        control = int(running.node()["control_pid"])
        figures["rss_mb_control_plane"] = rss_mb(control)
        figures["rss_mb_examiner"] = max(map(rss_mb, examiner_pids(control)), default=None)
        report("replica_memory", figures, context, bars)


if __name__ == "__main__":
    main()
