"""Desired -> actual: netlink and nftables; the only code that touches the kernel."""
