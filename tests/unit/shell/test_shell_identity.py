"""A host is who its disk says, on the machine it was made on, once at a time."""

import json
import os

import pytest

from meshd.errors import StateError
from meshd.shell import identity

SECRET = b"k" * 32


def test_the_second_start_is_the_same_host_with_the_first_secret(tmp_path):
    first = identity.load(tmp_path, SECRET, os.urandom, "machine-1")
    second = identity.load(tmp_path, b"another", os.urandom, "machine-1")
    assert (second.host, second.secret) == (first.host, first.secret)
    assert (first.new, second.new) == (True, False)
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600


def test_a_copied_disk_becomes_another_host_and_keeps_the_old_state_aside(tmp_path):
    first = identity.load(tmp_path, SECRET, os.urandom, "machine-1")
    (tmp_path / "journal").write_bytes(b"what the original owns")
    clone = identity.load(tmp_path, SECRET, os.urandom, "machine-2")
    assert clone.cloned
    assert clone.host != first.host
    assert not (tmp_path / "journal").exists()
    assert (tmp_path / "cloned-1" / "journal").read_bytes() == b"what the original owns"
    assert identity.load(tmp_path, SECRET, os.urandom, "machine-2").host == clone.host


def described(**changed):
    return json.dumps({"format": 1, "host": "ab" * 16, "secret": "cd" * 32, "machine": "m", **changed})


@pytest.mark.parametrize(
    "text",
    ["", "{}", "nonsense", "[1]", "\xff", "[" * 100_000, described(host="zz"), described(host="ab"), described(host=1),
     described(secret="cd"), described(secret=None)],
)  # fmt: skip
def test_a_file_that_is_no_identity_is_refused_and_left(tmp_path, text):
    (tmp_path / "identity").write_text(text)
    with pytest.raises(StateError, match="does not read as an identity"):
        identity.load(tmp_path, SECRET, os.urandom, "m")
    assert (tmp_path / "identity").read_text() == text


def test_an_identity_of_a_later_format_is_refused_and_left(tmp_path):
    (tmp_path / "identity").write_text(described(format=2))
    with pytest.raises(StateError, match="written in format 2, this version reads 1; nothing was changed"):
        identity.load(tmp_path, SECRET, os.urandom, "m")
    assert (tmp_path / "identity").read_text() == described(format=2)


@pytest.mark.parametrize("kept", ["journal", "journal.prev", "snapshot", "snapshot.prev"])
def test_a_journal_without_its_identity_is_not_run_under_another_id(tmp_path, kept):
    (tmp_path / kept).write_bytes(b"what the host that was here owns")
    with pytest.raises(StateError, match=f"identity: missing, but {kept} is there; nothing was changed"):
        identity.load(tmp_path, SECRET, os.urandom, "m")
    assert [path.name for path in tmp_path.iterdir()] == [kept]


def test_two_daemons_on_one_state_dir_are_one_too_many(tmp_path):
    fd = identity.lock(tmp_path)
    with pytest.raises(StateError, match="another meshd runs on this state_dir"):
        identity.lock(tmp_path)
    os.close(fd)
    os.close(identity.lock(tmp_path))
