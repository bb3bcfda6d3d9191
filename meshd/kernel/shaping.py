"""A rate limit on a device, packed: the token bucket of sch_tbf(8). Decides what a limit without a burst gets; which
endpoint has a limit is its runtime's word. Has no socket.

Layout: linux/rtnetlink.h (tcmsg), linux/pkt_sched.h (tc_tbf_qopt, tc_ratespec). The burst goes as TCA_TBF_BURST, in
bytes: the kernel needs no rate table then.
"""

import struct

from meshd.config import SHAPING_BURST_S, SHAPING_LATENCY_S
from meshd.kernel import frames

RTM_NEWQDISC, TC_H_ROOT = 36, 0xFFFFFFFF
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
LINKLAYER_ETHERNET = 1
INDEX_AT = frames.HEADER_BYTES + 4
"""Where the interface's number goes."""
MTU_BYTES = 65535  # a packet larger than the bucket would never leave; GSO makes them this large
U32_MAX = 2**32 - 1

_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_RATE = struct.Struct("=BBHhHI")  # cell log, link layer, overhead, cell align, mpu, bytes/s
_QOPT = struct.Struct("=12s12sIII")  # rate, peak rate, limit (bytes), buffer, mtu


def limit(bits_per_second: int, burst_bits: int) -> bytes:
    """Pack what limits what a device sends; in place of a limit that is there. ``burst_bits`` 0: what SHAPING_BURST_S
    of the rate is, and no less than one packet either way."""
    rate = max(1, bits_per_second // 8)
    burst = min(max(burst_bits // 8 or int(rate * SHAPING_BURST_S), MTU_BYTES), U32_MAX)
    queue = min(int(rate * SHAPING_LATENCY_S) + burst, U32_MAX)
    spec = _RATE.pack(0, LINKLAYER_ETHERNET, 0, 0, 0, min(rate, U32_MAX))
    options = frames.attribute(TCA_TBF_PARMS, _QOPT.pack(spec, b"", queue, 0, 0))
    options += frames.attribute(TCA_TBF_BURST, struct.pack("=I", burst))
    options += frames.attribute(TCA_TBF_RATE64, struct.pack("=Q", rate))
    body = _TCMSG.pack(0, 0, 0, TC_H_ROOT, 0)
    body += frames.attribute(TCA_KIND, b"tbf\0") + frames.attribute(TCA_OPTIONS, options)
    return frames.request(RTM_NEWQDISC, frames.ACK | frames.CREATE | frames.REPLACE, body)
