"""Folders as one artifact: a tar that depends on the files' names and content alone."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path


def files_in(folder: Path) -> dict[str, Path]:
    """The folder's files by their name in a tar, without what Python compiled."""
    return {
        item.relative_to(folder).as_posix(): item
        for item in folder.rglob("*")
        if item.is_file() and "__pycache__" not in item.parts
    }


def write(path: Path, members: Mapping[str, Path]) -> None:
    """Write files by their name in the tar. The same files give the same bytes: names sorted, owners and times left
    out. What links lead to is copied: a model may not lead out of its folder."""
    with tarfile.open(path, "w") as archive:
        for name, source in sorted(members.items()):
            info = tarfile.TarInfo(name)
            status = source.stat()
            info.size, info.mode = status.st_size, status.st_mode & 0o777
            with source.open("rb") as file:
                archive.addfile(info, file)
