"""Files and folders that are written whole or not at all."""

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_DESCRIPTORS = re.compile(r"/dev/(std(in|out|err)|fd/.*)|/proc/.*/fd/.*")
_MOUNTED = (errno.EBUSY, errno.EXDEV)
"""What a file system says when a mount point, such as a volume of a container, is to be renamed or replaced."""


@contextmanager
def replacing(path: Path, binary: bool = False) -> Iterator[IO]:
    """A file, of text unless it is binary, that appears under its name only when it is complete.

    One that is a mount point is written in place. If the last step fails, the OSError names the finished file, which is kept.
    """
    options = {} if binary else {"encoding": "utf-8", "newline": ""}
    target = Path(os.path.realpath(path))
    if _is_stream(path):
        with open(path, "ab" if binary else "a", **options) as file:
            yield file
        return
    part = _part_of(target)
    try:
        with open(part, "xb" if binary else "x", **options) as file:
            yield file
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with _naming(part):
        try:
            os.replace(part, target)
        except OSError as error:
            if error.errno not in _MOUNTED:
                raise
            shutil.copyfile(part, target)
            part.unlink()


@contextmanager
def replacing_folder(path: Path, filled: bool = False) -> Iterator[Path]:
    """A new folder to write into, which takes its name only when it is complete.

    One that is a mount point gets its contents, and nothing is written beside it. If the last step fails, the finished folder
    is kept, and the OSError names it.

    Args:
        filled: whether what stands there is replaced; without it, only an empty folder is.
    """
    target = Path(os.path.realpath(path))
    part = _part_of(target / target.name if os.path.ismount(target) else target)
    try:
        part.mkdir(parents=True)
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    with _naming(part):
        try:
            if part.parent != target:
                _replace_folder(part, target, filled)
                return
        except OSError as error:
            if error.errno not in _MOUNTED:
                raise
        _replace_contents(part, target, filled)


def _replace_folder(part: Path, target: Path, filled: bool) -> None:
    """Rename `part` to `target`; what stood there is removed only when it has been replaced."""
    old = part.with_suffix(".old")
    if filled and target.exists():
        os.replace(target, old)
    try:
        os.replace(part, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _replace_contents(part: Path, target: Path, filled: bool) -> None:
    older = [entry for entry in target.iterdir() if entry != part]
    if older and not filled:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    for entry in older:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in list(part.iterdir()):
        shutil.move(entry, target / entry.name)
    part.rmdir()


def _is_stream(path: Path) -> bool:
    """/dev/stdout and pipes are written to, never replaced, not even when standard output is redirected to a file."""
    target = Path(os.path.realpath(path))
    return bool(_DESCRIPTORS.fullmatch(os.path.abspath(path))) or (target.exists() and not target.is_file())


def _part_of(target: Path) -> Path:
    # A sibling, so that the last step is a rename within one file system.
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")


@contextmanager
def _naming(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; what was to be written is whole in {part}") from error


def check_writable(path: str | os.PathLike) -> None:
    """Find out before long work whether a file or folder can be written: a file is made and removed in the folder that it, or
    the first of the folders to be made for it, will lie in.

    Raises:
        OSError: it cannot.
    """
    if os.path.isdir(path) or not _is_stream(Path(path)):
        target = Path(os.path.realpath(path))
        folder = target if target.is_dir() and os.path.ismount(target) else target.parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".runne-coner-"):
            pass


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text)
