"""A container runtime in small: runs the real executables by the documented protocol (environment, standard input), a
whole list of them, with prevResult and runtimeConfig as SPEC.md 1.1.0, section 3, derives them."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshctl.cni import build, put, source
from meshctl.labhost import Host

REFERENCE = Path("/usr/lib/cni")  # Debian's containernetworking-plugins


class CniError(Exception):
    """What a plugin answered: ``code``, and all of its text."""

    def __init__(self, plugin: str, command: str, text: str) -> None:
        super().__init__(f"{plugin} {command}: {text}")
        try:
            self.code = int(json.loads(text)["code"])
        except ValueError:
            self.code = -1


@dataclass
class Runtime:
    """A runtime on one host, with one configuration list. ``plugins``: those of the list, ours without its socket."""

    host: Host
    name: str
    plugins: list[dict[str, Any]] = field(default_factory=lambda: [{"type": "meshd"}])
    version: str = "1.0.0"
    become: tuple[str, ...] = ()  # before each executable, setpriv(1) with flags for example
    cache: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where our executable is."""
        folder = self.host.dir.parent / "cni-bin"
        return folder if (folder / "meshd").exists() else put(build(source()), folder).parent

    def run(self, command: str, plugin: dict[str, Any], **said: str) -> subprocess.CompletedProcess[str]:
        """Run one plugin once, whatever comes of it."""
        kind = plugin["type"]
        path = (self.folder if kind == "meshd" else REFERENCE) / kind
        config = {**plugin, "name": self.name, "cniVersion": self.version}
        if kind == "meshd":
            config["socket"] = str(self.host.dir / "run" / "cni.sock")
        environment = {"CNI_COMMAND": command, "CNI_PATH": f"{self.folder}:{REFERENCE}", **said}
        return subprocess.run(
            self.host.argv(*self.become, str(path)), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
            input=json.dumps(config), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def _chain(
        self, command: str, result: dict[str, Any] | None, wanted: dict[str, Any], said: dict[str, str]
    ) -> dict[str, Any] | None:
        """Run the list in its order, or for DEL from the end."""
        for plugin in reversed(self.plugins) if command == "DEL" else self.plugins:
            config = dict(plugin)
            can = plugin.get("capabilities", {})
            runtime = {key: value for key, value in wanted.items() if can.get(key)}
            if runtime:
                config["runtimeConfig"] = runtime
            if result is not None:
                config["prevResult"] = result
            done = self.run(command, config, **said)
            if done.returncode:
                raise CniError(plugin["type"], command, done.stdout or done.stderr)
            if command == "ADD":
                result = json.loads(done.stdout)
        return result

    def add(
        self, container: str, netns: str, *, ifname: str = "eth0", args: str = "", **wanted: Any
    ) -> dict[str, Any]:
        """ADD; return the last plugin's result. ``wanted``: runtimeConfig, for plugins with that capability."""
        said = {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname, "CNI_ARGS": args}
        result = self._chain("ADD", None, wanted, said)
        assert result is not None
        self.cache[container, ifname] = result, {"wanted": wanted, "said": said}
        return result

    def check(self, container: str, ifname: str = "eth0") -> None:
        """CHECK with the cached result. Raises CniError."""
        result, kept = self.cache[container, ifname]
        self._chain("CHECK", result, kept["wanted"], kept["said"])

    def delete(self, container: str, ifname: str = "eth0", **said: str) -> None:
        """DEL with the cached result, if there is one. Raises CniError."""
        result, kept = self.cache.get((container, ifname), (None, {"wanted": {}, "said": {"CNI_NETNS": ""}}))
        told = {**kept["said"], "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, **said}
        self._chain("DEL", result, kept["wanted"], told)
        self.cache.pop((container, ifname), None)

    def ask(self, command: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """STATUS or GC of our plugin alone, with all variables but the operation empty, as libcni does."""
        empty = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}
        return self.run(command, {"type": "meshd", **config}, **empty)

    def gc(self, *valid: tuple[str, str]) -> None:
        """GC. Raises CniError."""
        listed = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        done = self.ask("GC", **{"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed})
        if done.returncode:
            raise CniError("meshd", "GC", done.stdout)

    def at_once(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Call several (function, *arguments) at once; return results and errors."""

        def call(one: tuple[Any, ...]) -> Any:
            try:
                return one[0](*one[1:])
            except CniError as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(call, calls))
