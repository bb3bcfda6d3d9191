"""pyroute2's message class for links, without the rest of pyroute2. The only importer of pyroute2; it knows
nothing of what is said with it.

``import pyroute2.netlink.rtnl.ifinfmsg`` first runs the package's ``__init__``, which imports everything: 332
modules, 92 ms, 24 MB. The class alone needs 24 of them: 19 ms, 4 MB. So an empty package of that name stands
in while the class is imported, and is taken away again, so that ``import pyroute2`` elsewhere (tests, as an
oracle) finds the real one.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any, cast

_PACKAGE = "pyroute2"


def _message_class() -> Any:
    stand_in = None
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"no package {_PACKAGE}")
        stand_in = types.ModuleType(_PACKAGE)
        stand_in.__path__ = list(spec.submodule_search_locations)
        sys.modules[_PACKAGE] = stand_in
    try:
        return importlib.import_module(f"{_PACKAGE}.netlink.rtnl.ifinfmsg").ifinfmsg
    finally:
        if stand_in is not None and sys.modules.get(_PACKAGE) is stand_in:
            del sys.modules[_PACKAGE]


_ifinfmsg = _message_class()


def link_message(
    kind: int, flags: int, attrs: list[tuple[str, Any]], *, index: int = 0, up: bool | None = None
) -> bytes:
    """Encode a link request. ``attrs``: pyroute2's names and values; ``up``: None leaves it as it is."""
    message = _ifinfmsg()
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message["index"] = index
    if up is not None:
        message["flags"] = int(up)
        message["change"] = 1
    message["attrs"] = attrs
    message.encode()
    return bytes(cast("bytearray", message.data))
