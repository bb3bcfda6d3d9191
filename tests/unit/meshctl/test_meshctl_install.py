"""meshctl install and uninstall below a root directory. On a booted host: tests/real/test_real_systemd_pip.py."""

import json
import sysconfig
import tomllib
from pathlib import Path

from meshctl.install import PLACES

ROOT = Path(__file__).parents[3]
SCRIPTS = sysconfig.get_path("scripts")


def test_all_texts_come_with_the_wheel():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    names = {*PLACES, "accept-ra"}
    assert wheel["force-include"] == {f"systemd/{name}": f"meshctl/units/{name}" for name in names}
    left_out = {"deb", "install"}
    assert {path.name for path in (ROOT / "systemd").iterdir()} == names | left_out


def test_install_writes_the_repositorys_texts_for_this_installations_programs_and_uninstall_takes_all_away(
    meshctl, tmp_path
):
    root = tmp_path / "image"
    root.mkdir()
    for _ in range(2):  # a second time it brings up to date
        done = meshctl("-o", "json", "install", "--root", str(root))
        assert done.exit_code == 0
    written = json.loads(done.stdout)["written"]
    library = root / "usr/local/lib"
    assert written == [str(library / place) for place in PLACES.values()]
    for name, place in PLACES.items():
        text = (ROOT / "systemd" / name).read_text()
        installed = library / place
        assert installed.read_text() == text.replace("=/opt/meshd/bin/", f"={SCRIPTS}/")
        assert installed.stat().st_mode & 0o777 == 0o644
    unit = (library / PLACES["meshd.service"]).read_text()
    assert f"\nExecStart={SCRIPTS}/meshd --config" in unit
    assert "/opt/meshd" not in unit
    done = meshctl("-o", "json", "uninstall", "--root", str(root))
    assert json.loads(done.stdout)["removed"] == written
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert json.loads(meshctl("-o", "json", "uninstall", "--root", str(root)).stdout)["removed"] == []


def test_units_of_a_package_are_left_alone(meshctl, tmp_path):
    packaged = tmp_path / "lib/systemd/system/meshd.service"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    done = meshctl("install", "--root", str(tmp_path))
    assert done.exit_code == 1
    assert f"error: {packaged} is there, from a package; nothing was changed" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [packaged]


def test_what_cannot_be_written_is_named(meshctl, tmp_path):
    (tmp_path / "usr").touch()
    done = meshctl("install", "--root", str(tmp_path))
    assert done.exit_code == 1
    assert f"error: {tmp_path}/usr/local/lib/systemd/system/meshd.service cannot be written" in done.stderr
