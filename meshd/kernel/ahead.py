"""The FDB rows of all bridges and VXLAN devices, read ahead on a thread of its own: at a start the kernel takes seconds
to list 200,000, and the state can be loaded meanwhile. It must not know what the rows mean.

What changes after it was begun is told by events (watch.py), as with any dump: so watch first.
"""

import threading

from meshd.errors import KernelError
from meshd.kernel import netlink, rows


class Ahead:
    """Begins to read when it is made, in the namespace it is made in."""

    def __init__(self) -> None:
        self._chunks: list[bytes] | None = None
        self._link = netlink.Netlink()
        self._thread = threading.Thread(target=self._read, name="rows ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self._chunks = self._link.dump(rows.dump_request(rows.AF_BRIDGE))
        except KernelError:
            pass  # whoever takes them asks again, and is told why not
        finally:
            self._link.close()

    def take(self) -> list[bytes] | None:
        """Wait, and return the received buffers; None where the kernel refused."""
        self._thread.join()
        return self._chunks
