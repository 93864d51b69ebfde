from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sacvit_deploy import files
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.files import (
    check_output,
    check_writable,
    folder_lock,
    open_regular,
    own_folder,
    put_back,
    replacing,
    swap_in,
    terminated_like_ctrl_c,
    write_output,
    write_whole,
)

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


needs_devices = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_regular_file_is_opened_and_a_link_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "file", str(tmp_path / "link")):
        with open_regular(path) as stream:
            assert stream.read() == b"abc"


@needs_devices
def test_pipes_sockets_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path / "zero", "/dev/ptmx"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                open_regular(path)
            assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@needs_devices
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    before = os.stat(tmp_path / "file")
    monkeypatch.setattr("sacvit_deploy.files.os.stat", lambda _path: before)
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
    assert len(os.listdir("/dev/fd")) == descriptors


@needs_locks
def test_one_at_a_time_holds_a_lock(tmp_path):
    with folder_lock(tmp_path) as first, folder_lock(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with folder_lock(tmp_path, wait=False) as again:
        assert again
    assert names(tmp_path) == set()


@needs_locks
def test_readers_share_a_lock_and_a_writer_has_it_alone(tmp_path):
    one, two = (folder_lock(tmp_path, shared=True) for _ in range(2))
    with one as first, two as second, folder_lock(tmp_path, wait=False) as writer:
        assert (first, second, writer) == (True, True, False)
    with folder_lock(tmp_path), folder_lock(tmp_path, wait=False, shared=True) as reader:
        assert not reader


@needs_locks
def test_a_second_one_waits(tmp_path):
    order = []

    def second() -> None:
        with folder_lock(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with folder_lock(tmp_path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@needs_locks
def test_who_waited_gets_the_lock_of_the_folder_that_is_there_then(tmp_path):
    folder, new = tmp_path / "bundle", tmp_path / ".new.tmp"
    folder.mkdir()
    new.mkdir()
    seen = []

    def second() -> None:
        with folder_lock(folder), folder_lock(folder, wait=False) as is_free:
            seen.append(is_free)

    thread = threading.Thread(target=second)
    with folder_lock(folder):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        swap_in(new, folder)
    thread.join()
    assert seen == [False]


@needs_locks
def test_a_folder_that_went_while_its_lock_was_waited_for_is_an_error(tmp_path, monkeypatch):
    import fcntl

    folder, flock = tmp_path / "bundle", fcntl.flock
    folder.mkdir()

    def slow(descriptor: int, how: int) -> None:
        folder.rmdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(FileNotFoundError), folder_lock(folder):
        pass


def test_a_folder_that_went_with_its_parent_is_no_error(tmp_path):
    parent = tmp_path / "bundle"
    parent.mkdir()
    with own_folder(parent) as folder:
        parent.rename(tmp_path / "aside")
    assert not folder.exists()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("suffix", [".new", ".old"])
def test_ctrl_c_leaves_a_folder_in_place(tmp_path, monkeypatch, suffix, after):
    """Before or after each of the two renames."""
    folder, new = tmp_path / "bundle", tmp_path / ".x.tmp"
    for each in (folder, new):
        each.mkdir()
        (each / each.name).touch()
    rename, calls = Path.rename, []

    def press(self: Path, target: Path) -> None:
        calls.append(target)
        is_meant = len(calls) == 1 if suffix == ".old" else len(calls) == 2
        if after or not is_meant:
            rename(self, target)
        if is_meant:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", press)
    with pytest.raises(KeyboardInterrupt):
        swap_in(new, folder)
    is_new = suffix == ".new" and after
    assert names(folder) == {".x.tmp" if is_new else "bundle"}
    assert names(tmp_path) == ({"bundle"} if is_new else {"bundle", ".x.tmp"})


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="needs an exchange rename")
def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch):
    folder, new = tmp_path / "bundle", tmp_path / "new"
    for each in (folder, new):
        each.mkdir()
        (each / each.name).touch()
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("two steps"))
    swap_in(new, folder)
    assert names(tmp_path) == {"bundle"}
    assert names(folder) == {"new"}


@needs_locks
def test_a_folder_is_put_back_when_nobody_holds_it(tmp_path):
    folder, aside = tmp_path / "bundle", tmp_path / ".bundle.0123abcd.old"
    aside.mkdir()
    (tmp_path / ".other.0123abcd.old").mkdir()
    thread = threading.Thread(target=put_back, args=(folder,))
    with folder_lock(aside):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        folder.mkdir()  # the replacement succeeded
    thread.join()
    assert not put_back(folder)
    assert aside.exists()
    folder.rmdir()
    assert put_back(folder)
    assert names(tmp_path) == {"bundle", ".other.0123abcd.old"}
    assert not put_back(tmp_path / "none" / "bundle")


@needs_locks
def test_a_folder_that_was_taken_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """Another process looked between its making and its lock."""
    mkdir, made = Path.mkdir, []

    def swept(self: Path) -> None:
        made.append(self)
        mkdir(self)
        if len(made) == 1:
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", swept)
    with own_folder(tmp_path) as folder:
        assert [folder] == made[1:]
        assert names(tmp_path) == {folder.name}


@needs_locks
def test_what_a_killed_process_left_of_a_file_goes_and_nothing_else(tmp_path):
    others = {".a.txt.0123ABCD.tmp", ".b.txt.0123abcd.tmp", "a.txt.0123abcd.tmp", ".a.txt.tmp"}
    for name in (*others, ".a.txt.0123abcd.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".a.txt.eeeeeeee.tmp").mkdir()
    (tmp_path / ".a.txt.ffffffff.tmp").symlink_to(tmp_path / ".a.txt.tmp")
    others |= {".a.txt.eeeeeeee.tmp", ".a.txt.ffffffff.tmp"}
    with replacing(tmp_path / "a.txt") as first:
        first.write_text("first")
        write_whole(tmp_path / "a.txt", "second")
        assert names(tmp_path) == others | {"a.txt", first.name}
    assert names(tmp_path) == others | {"a.txt"}
    assert (tmp_path / "a.txt").read_text() == "first"


@needs_locks
def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path):
    (tmp_path / ".0123abcd.tmp" / "engines").mkdir(parents=True)
    (tmp_path / ".0123abcd.tmp" / "engines" / "half").write_bytes(b"half")
    others = {".mine.tmp", ".0123abcd", "0123abcd.tmp", ".0123ABCD.tmp"}
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".ffffffff.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".eeeeeeee.tmp").touch()
    others |= {"elsewhere", ".ffffffff.tmp", ".eeeeeeee.tmp"}
    with own_folder(tmp_path) as first, own_folder(tmp_path) as second:
        assert names(tmp_path) == others | {first.name, second.name}
    assert names(tmp_path) == others


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    (tmp_path / ".0123abcd.tmp").mkdir()
    monkeypatch.setattr(sys, "platform", "win32")
    with folder_lock(tmp_path) as is_held, own_folder(tmp_path) as folder:
        assert not is_held
        assert names(tmp_path) == {".0123abcd.tmp", folder.name}
    assert names(tmp_path) == {".0123abcd.tmp"}


@needs_locks
def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError("No locks available")

    (tmp_path / ".0123abcd.tmp").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with own_folder(tmp_path) as folder:
        assert names(tmp_path) == {".0123abcd.tmp", folder.name}


_TERMINATED = """
import os, signal, sys
from pathlib import Path
from sacvit_deploy.files import own_folder

with own_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
def test_sigterm_leaves_nothing(tmp_path):
    """In a process of its own, which would end where it is not caught."""
    command = [sys.executable, "-c", _TERMINATED, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in ran.stderr
    assert names(tmp_path) == set()


def test_who_listens_to_sigterm_already_goes_on_doing_so():
    def listen(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, listen)
    try:
        with terminated_like_ctrl_c():
            assert signal.getsignal(signal.SIGTERM) is listen
    finally:
        signal.signal(signal.SIGTERM, before)
    with contextlib.suppress(KeyboardInterrupt), terminated_like_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_leaves_signals_alone():
    seen = []

    def work() -> None:
        with terminated_like_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize("content", ["Käfer", "Käfer".encode()])
def test_a_file_is_written_whole(tmp_path, content):
    file = tmp_path / "result.txt"
    for write in (write_whole, write_output):
        write(file, content)
        assert file.read_bytes() == "Käfer".encode()
    assert names(tmp_path) == {"result.txt"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_is_not_finished_leaves_no_trace(tmp_path, error, exists):
    file = tmp_path / "result.txt"
    if exists:
        file.write_text("first")

    def write() -> None:
        with replacing(file) as path:
            assert path.parent == tmp_path
            path.write_text("sec")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ({"result.txt"} if exists else set())
    if exists:
        assert file.read_text() == "first"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
def test_sigterm_leaves_the_old_file(tmp_path):
    file = tmp_path / "result.txt"
    file.write_text("first")
    script = (
        "import os, signal, sys; from pathlib import Path; from sacvit_deploy.files import *\n"
        "with replacing(Path(sys.argv[1])) as path:\n"
        "    path.write_text('sec')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = [sys.executable, "-c", script, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in ran.stderr
    assert names(tmp_path) == {"result.txt"}
    assert file.read_text() == "first"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "latest.txt", tmp_path / "elsewhere" / "run.txt"
    link.symlink_to(file)
    write_whole(link, "content")
    assert link.is_symlink()
    assert file.read_text() == "content"
    assert names(file.parent) == {"run.txt"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_stays_a_pipe(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_output(pipe)
    thread = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    thread.start()
    write_output(pipe, "content")
    thread.join()
    assert found == [b"content"]
    assert pipe.is_fifo()
    assert names(tmp_path) == {"pipe"}


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs devices with names")
def test_a_device_stays_a_device():
    check_output(Path("/dev/null"))
    write_output(Path("/dev/null"), "content")
    assert Path("/dev/null").is_char_device()


_TO_STDOUT = """
from pathlib import Path
from sacvit_deploy.files import check_output, write_output

check_output(Path("/dev/stdout"))
write_output(Path("/dev/stdout"), "content")
"""


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs streams with names")
@pytest.mark.parametrize("to_file", [True, False])
def test_stdout_is_written_to_wherever_it_leads(tmp_path, to_file):
    command, file = [sys.executable, "-c", _TO_STDOUT], tmp_path / "out.txt"
    if to_file:
        with file.open("wb") as stream:
            subprocess.run(command, stdout=stream, check=True)
        assert file.read_text() == "content"
        assert names(tmp_path) == {"out.txt"}
    else:
        assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"content"
    assert Path("/dev/stdout").is_symlink()


def test_a_check_leaves_nothing(tmp_path):
    for check in (check_writable, check_output):
        check(tmp_path / "new.txt")
        (tmp_path / "old.txt").write_text("old")
        check(tmp_path / "old.txt")
        assert names(tmp_path) == {"old.txt"}
    assert (tmp_path / "old.txt").read_text() == "old"


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    write_output(file, "first")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ConfigError, match="disk full"):
        write_output(file, "second")
    assert file.read_text() == "first"
    assert names(tmp_path) == {"report.html"}


@pytest.mark.parametrize("name", [".", "none/new.txt"])
def test_what_cannot_be_written_is_told(tmp_path, name):
    for refused in (check_writable, lambda file: write_whole(file, "content")):
        with pytest.raises(OSError, match=r"folder|directory|No such file"):
            refused(tmp_path / name)
    for refused in (check_output, lambda file: write_output(file, "content")):
        with pytest.raises(ConfigError, match=r"folder|cannot be written"):
            refused(tmp_path / name)
    assert names(tmp_path) == set()
