"""What the pages tell people to type does what they say: the quickstart, and a backup of a platform that runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from headrace.client.serve import Platform
from tests import models

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """What stands after ``$``, with the lines that continue it."""
    found: list[str] = []
    for line in "".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        else:
            found[-1] += f"\n{line}"
    return found


def test_the_quickstart(platform: Platform, tmp_path: Path) -> None:
    rows, target = models.breast_cancer()
    for k, c in enumerate((1.0, 0.01), 1):
        model = LogisticRegression(C=c, max_iter=5000).fit(rows[:, :4].astype(np.float64), target)
        skops.io.dump(model, tmp_path / f"churn-{k}.skops")
    script = tmp_path / "headrace"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m headrace.cli.main \"$@\"\n")
    script.chmod(0o755)
    access = platform.client.access
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HEADRACE_URL": access.url,
        "HEADRACE_CONTROL_URL": access.control_url,
        "HEADRACE_API_KEY": access.api_key,
    }
    said = {}
    for command in commands("quickstart.md"):
        if command == "headrace up" or (command.startswith("curl") and shutil.which("curl") is None):
            continue
        typed = command.replace("http://127.0.0.1:8000", access.url)
        done = subprocess.run(
            typed, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command.split(" --")[0]] = done.stdout
    assert "churn: 1: 100 %" in said["headrace rollback churn"]
    assert "traffic.rollback" in said["headrace changes churn"]
    assert not any(command.startswith("curl") for command in said) or '"probabilities"' in "".join(said.values())
    (script_block,) = blocks("quickstart.md", "python")
    subprocess.run([sys.executable, "-c", script_block], env=environment, check=True, timeout=60)
    platform.client.deployments.remove("churn@2")


def test_the_page_on_pipelines(platform: Platform, tmp_path: Path) -> None:
    script = tmp_path / "headrace"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m headrace.cli.main \"$@\"\n")
    script.chmod(0o755)
    access = platform.client.access
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HEADRACE_URL": access.url,
        "HEADRACE_CONTROL_URL": access.control_url,
        "HEADRACE_API_KEY": access.api_key,
        "COLUMNS": "120",
    }
    for block in blocks("pipelines.md", "toml") + blocks("pipelines.md", "python"):
        if file := re.match(r"# file: (\S+)\n", block):
            (tmp_path / file[1]).write_text(block)
        elif not block.startswith("# with the platform"):
            subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment, check=True, timeout=60)
    told = ""
    for command in ("models push cancer-trees trees.ubj", "models push diagnosis pipeline.toml", "deploy diagnosis@1"):
        done = subprocess.run(
            [script, *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        told += f"$ headrace {command}\n{done.stdout}"
    (console,) = blocks("pipelines.md", "console")
    sizes = re.compile(r"[\d.]+ KiB")
    printed = sizes.sub("", told).splitlines()
    assert [line for line in sizes.sub("", console).splitlines() if line not in printed] == [], told
    (script_block,) = [block for block in blocks("pipelines.md", "python") if block.startswith("# with the platform")]
    subprocess.run([sys.executable, "-c", script_block], cwd=tmp_path, env=environment, check=True, timeout=60)
    platform.client.deployments.remove("diagnosis@1", force=True)


@pytest.mark.timeout(240)
def test_a_backup_of_a_platform_that_runs_starts_and_serves(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    running = Platform(str(data))
    try:
        running.client.models.push("kept", models.echo_onnx(5.0).named(tmp_path))
        running.client.deployments.create("kept@1")
        (typed,) = (block for block in blocks("operating.md", "sh") if "BACKUP" in block)
        environment = {**os.environ, "DATA": str(data), "BACKUP": str(backup)}
        subprocess.run(["sh", "-ec", typed], env=environment, check=True, timeout=60)
        kept = {path.name for path in data.iterdir()}
        running.client.models.push("late", models.echo_onnx(6.0).named(tmp_path))
    finally:
        running.stop()
    page = (DOCS / "operating.md").read_text()
    told = re.findall(r"^\| `([\w.*/-]+)` \|", page, flags=re.MULTILINE)
    unknown = {
        name
        for name in kept
        if not any(Path(name).match(one.rstrip("/")) for one in (*told, "headrace.db-*", "up.log"))
    }
    assert not unknown, "the page does not tell of them"
    restored = Platform(str(backup))
    try:
        assert [model.name for model in restored.client.models.list()] == ["kept"]
        restored.client.deployments.create("kept@1")
        assert restored.client.predict("kept", [[1.0]]).array.tolist() == [[6.0]]
    finally:
        restored.stop()


def test_links_between_the_pages_lead_somewhere() -> None:
    root = DOCS.parent
    for page in (*DOCS.rglob("*.md"), root / "README.md", root / "ARCHITECTURE.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(root)}: {link}"
    index = (DOCS / "README.md").read_text()
    assert {f"({page.name})" for page in DOCS.glob("*.md")} - {"(README.md)"} <= set(re.findall(r"\([\w./-]+\)", index))
    decisions = (DOCS / "decisions" / "README.md").read_text()
    assert all(page.name in decisions for page in (DOCS / "decisions").glob("0*.md"))
