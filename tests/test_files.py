"""Files and folders that are written whole or not at all, also where mount points cannot be renamed."""

import errno
import os
import shutil

import pytest

from runne_coner.files import check_writable, replacing, replacing_folder


@pytest.fixture
def mounted(monkeypatch):
    """Makes a path behave as a mount point, such as a volume of a container: it cannot be renamed or replaced."""
    genuine, points = os.replace, set()

    def replace(source, target):
        if {str(source), str(target)} & points:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        genuine(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return lambda path: points.add(str(path))


def write(path, text):
    with replacing(path) as file:
        file.write(text)


def write_folder(path, names, **options):
    with replacing_folder(path, **options) as part:
        for name in names:
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text(name, encoding="utf-8")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_mounted_file_is_written_in_place(tmp_path, mounted):
    path = tmp_path / "out.jsonl"
    path.touch()
    mounted(path)
    write(path, "new")
    assert path.read_text(encoding="utf-8") == "new" and names(tmp_path) == ["out.jsonl"]


def test_a_mounted_folder_gets_the_contents(tmp_path, mounted):
    folder = tmp_path / "out"
    folder.mkdir()
    mounted(folder)
    write_folder(folder, ["a.txt", "figures/b.png"])
    assert names(tmp_path) == ["out/a.txt", "out/figures/b.png"]
    write_folder(folder, ["c.txt"], filled=True)
    assert names(tmp_path) == ["out/c.txt"]


@pytest.mark.parametrize("filled", [False, True])
def test_a_volume_is_written_to_without_its_parent(tmp_path, monkeypatch, filled):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: os.fspath(path) == os.fspath(folder))
    if filled:
        write_folder(folder, ["old.txt", "figures/old.png"])
    check_writable(folder)
    with replacing_folder(folder, filled=filled) as part:
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert bool(names(folder)) == filled  # what stood there stands until all is written
        (part / "figures").mkdir()
        for name in ("a.txt", "figures/b.png"):
            (part / name).touch()
    assert names(tmp_path) == ["out/a.txt", "out/figures/b.png"] and not list(folder.glob(".*"))
    with pytest.raises(RuntimeError), replacing_folder(folder) as part:
        raise RuntimeError
    with pytest.raises(OSError, match="not empty; what was to be written is whole in"):
        write_folder(folder, ["more.txt"])
    made = []
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda dir, **_: made.append(dir) or open(os.devnull))
    check_writable(folder)
    check_writable(folder / "file")
    check_writable(tmp_path / "other")
    assert made == [folder, folder, tmp_path]


@pytest.mark.parametrize("point", [False, True])
def test_a_folder_that_was_filled_meanwhile_is_not_replaced(tmp_path, mounted, point):
    folder = tmp_path / "out"
    if point:
        mounted(folder)
    with pytest.raises(OSError, match="what was to be written is whole in") as failed:
        with replacing_folder(folder) as part:
            (part / "mine").touch()
            folder.mkdir()
            (folder / "theirs").touch()
    assert str(part) in failed.value.strerror
    assert names(folder) == ["theirs"] and names(part) == ["mine"]


def test_what_is_finished_is_kept_if_the_last_step_fails(tmp_path, mounted, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "out.jsonl"
    mounted(path)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left on device; what was to be written is whole in"):
        write(path, "new")
    (part,) = tmp_path.glob(".*.part")
    assert part.read_text(encoding="utf-8") == "new"


def test_what_is_not_finished_is_removed(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as file:
        file.write("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "folder") as part:
        (part / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_place_is_checked_and_left_as_it_was(tmp_path):
    (tmp_path / "file").touch()
    for good in (tmp_path / "file", tmp_path / "new", tmp_path / "new" / "deeper" / "file", tmp_path, "/dev/stdout"):
        check_writable(good)
    assert names(tmp_path) == ["file"] and not (tmp_path / "new").exists()
    with pytest.raises(OSError):
        check_writable(tmp_path / "file" / "inside")
