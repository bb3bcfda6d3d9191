"""Whatever the disk refuses is one line with the file, the system's words and what to do; nothing is half written."""

import errno

import pytest

from meshd import daemon
from meshd.errors import ConfigError, StateError
from meshd.shell import disk, identity

KEY = "0a0b:" + "A" * 43 + "=\n"


def test_what_is_written_is_read_back_and_is_the_owners_alone(tmp_path):
    disk.write(tmp_path / "f", "one\n")
    disk.write(tmp_path / "f", "two\n")
    assert disk.read(tmp_path / "f") == b"two\n"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert disk.read(tmp_path / "f") is None


@pytest.mark.parametrize("use", [disk.read, lambda path: disk.write(path, "x")])
def test_a_directory_in_the_place_of_a_file_is_named(tmp_path, use):
    (tmp_path / "f").mkdir()
    with pytest.raises(StateError) as caught:
        use(tmp_path / "f")
    assert f"{tmp_path / 'f'}" in caught.value.what
    assert "cannot be used: Is a directory; nothing was started" in caught.value.what
    assert caught.value.hint == "a directory stands where meshd keeps a file: move it away"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_what_an_operator_can_mend_has_a_hint(tmp_path, number):
    with pytest.raises(StateError) as caught, disk.refusals(tmp_path / "journal"):
        raise OSError(number, "words")
    assert caught.value.what == f"{tmp_path / 'journal'}: cannot be used: words; nothing was started"
    assert caught.value.hint


@pytest.mark.parametrize("state_dir", ["file", "file/below"])
def test_a_file_in_the_place_of_state_dir_is_named(tmp_path, state_dir):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StateError, match=r"file.*cannot be used") as caught:
        identity.lock(tmp_path / state_dir)
    assert "move it away" in caught.value.hint
    assert (tmp_path / "file").read_text() == "precious"


def test_a_byte_order_mark_is_no_part_of_an_operators_file(tmp_path):
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbf" + KEY.encode())
    assert disk.read_operators(tmp_path / "f") == KEY


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe\0"), "cannot be read: not UTF-8 text"),
    ],
)
def test_an_operators_file_that_cannot_be_read_is_a_mistake_of_the_configuration(tmp_path, make, what):
    make(tmp_path / "f")
    with pytest.raises(ConfigError) as caught:
        disk.read_operators(tmp_path / "f")
    assert caught.value.what == f"{tmp_path / 'f'}: {what}"


# --- the keyring: seeded once, live from then on -------------------------------------------------------------


def test_the_operators_keyring_seeds_the_live_one_once(tmp_path):
    (tmp_path / "etc").write_text(KEY)
    seeded = daemon.load_ring(tmp_path / "etc", tmp_path)
    (tmp_path / "etc").unlink()
    assert daemon.load_ring(tmp_path / "etc", tmp_path) == seeded


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"hello", b"0a0b:AAAA"])
def test_a_damaged_live_keyring_is_left_as_it_is(tmp_path, content):
    (tmp_path / "etc").write_text(KEY)
    (tmp_path / "keyring").write_bytes(content)
    with pytest.raises(StateError, match=r"keyring: .*; nothing was changed"):
        daemon.load_ring(tmp_path / "etc", tmp_path)
    assert (tmp_path / "keyring").read_bytes() == content
