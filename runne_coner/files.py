"""Files that are written whole or not at all."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_DESCRIPTORS = re.compile(r"/dev/(std(in|out|err)|fd/.*)|/proc/.*/fd/.*")


@contextmanager
def replacing(path: Path, binary: bool = False) -> Iterator[IO]:
    """A file, of text unless it is binary, that appears under its name only when it is complete."""
    options = {} if binary else {"encoding": "utf-8", "newline": ""}
    target = Path(os.path.realpath(path))
    # /dev/stdout and pipes are written to, never replaced, not even when standard output is redirected to a file.
    if _DESCRIPTORS.fullmatch(os.path.abspath(path)) or (target.exists() and not target.is_file()):
        with open(path, "ab" if binary else "a", **options) as file:
            yield file
        return
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb" if binary else "x", **options) as file:
            yield file
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text)
