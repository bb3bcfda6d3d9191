"""Forward chains of others that would drop our bridges' packets, and the accepts that we put there, once. It
decides which chains those are and what is ours in them; whether the accepts should be there is plan/diff.py's.

A chain is shut if it is a base chain of the forward hook (ip, ip6 or inet) whose policy is drop, or whose last rule
drops or rejects whatever is left, as firewalld's does: an accept in a table of ours cannot help, since a drop in any
chain of the hook is final. Where the table has DOCKER-USER, which Docker's FORWARD asks first and leaves to others, the
accepts go there. They are written as iptables-nft would write them: it shows a rule that it cannot read as one that
accepts everything, and would restore it so. Theirs apart from that are read and never written.
"""

import errno
import re
from collections.abc import Callable
from typing import Any

from meshd.errors import KernelError
from meshd.kernel import nfttool
from meshd.kernel.echoes import Echoes
from meshd.plan import names
from meshd.plan.objects import GATE_ACCEPTS, Gate, GateState

FAMILIES = ("ip", "ip6", "inet")
DOCKER_USER = "DOCKER-USER"
PURPOSE = "open_forward"
COMMENT = f"{names.MARK}: {PURPOSE}"
_SOMEBODYS = re.compile(rf"{names.MARK}(-\d+)?: {PURPOSE}")
PLACES = tuple((way, f"{names.BRIDGE}*") for way in ("iifname", "oifname"))
"""One accept each: packets from and to our bridges and the host's own devices on overlays."""
_FORMER = tuple((way, "mx*") for way in ("iifname", "oifname"))
"""Also ours, and to go: what named the host's own devices before they were called like the bridges."""
_LAST_WORDS = {"drop", "reject"}


class Gates:
    """The forward chains of one namespace. ``generation``: the ruleset's, as Firewall gives it; ``table``: of our own
    tables, which the accepts are marked with. Blocking."""

    def __init__(self, echoes: Echoes, generation: Callable[[], int | None], table: str = names.MARK) -> None:
        self._echoes = echoes
        self._table = table
        self._comment = f"{table}: {PURPOSE}"
        self._generation = generation
        self._read_at: int | None = None
        self._found: dict[Gate, GateState] = {}

    def read(self) -> dict[Gate, GateState]:
        """Return the chains that are shut, and those where accepts of ours are. Raises KernelError."""
        generation = self._generation()
        if generation is None:
            return {}
        if generation != self._read_at:
            self._found = self._look()
            self._read_at = generation
        return dict(self._found)

    def open(self, gate: Gate) -> None:
        """Put them at the chain's head, in place of what is there of it. Raises KernelError."""
        self._write(
            gate, [f'{way} "{device}" counter accept comment "{self._comment}"' for way, device in PLACES]
        )

    def leave(self, gate: Gate) -> None:
        """Take our accepts out; a chain that is gone has none. Raises KernelError."""
        self._write(gate, [])

    def _write(self, gate: Gate, rules: list[str]) -> None:
        self._read_at = None
        where = f"{gate.family} {gate.table} {gate.chain}"
        try:
            handles = [rule["handle"] for rule in self._rules(gate) if self._place(rule)]
        except KernelError:
            if rules:
                raise
            return
        lines = [f"delete rule {where} handle {handle}" for handle in handles]
        lines += [f"insert rule {where} {rule}" for rule in reversed(rules)]
        if lines:
            about = f"chain {where} was left as it was"
            nfttool.run(self._echoes, ["-f", "-"], "\n".join(lines) + "\n", about=about)

    def _look(self) -> dict[Gate, GateState]:
        chains: list[dict[str, Any]] = [item["chain"] for item in self._list(["chains"]) if "chain" in item]
        docker = {(chain["family"], chain["table"]) for chain in chains if chain["name"] == DOCKER_USER}
        found: dict[Gate, GateState] = {}
        for chain in chains:
            place = (chain["family"], chain["table"])
            if (
                chain.get("hook") != "forward"
                or chain["family"] not in FAMILIES
                or chain["table"] == self._table
            ):
                continue
            base = Gate(*place, chain["name"])
            rules = self._rules(base)
            shut = chain.get("policy") == "drop" or (bool(rules) and _ends_all(rules[-1]))
            if place in docker:
                found[base] = GateState(
                    shut=False, accepts=self._accepts(rules)
                )  # from before Docker came, if any
                base = Gate(*place, DOCKER_USER)
                rules = self._rules(base)
            found[base] = GateState(shut, self._accepts(rules))
        return {gate: state for gate, state in found.items() if state.shut or state.accepts}

    def _rules(self, gate: Gate) -> list[dict[str, Any]]:
        listed = self._list(["chain", gate.family, gate.table, gate.chain])
        return [item["rule"] for item in listed if "rule" in item]

    def _list(self, what: list[str]) -> list[dict[str, Any]]:
        output = nfttool.run(
            self._echoes, ["-j", "-a", "-t", "list", *what], about="reading other tables' chains"
        )
        try:
            return nfttool.listed(output)
        except ValueError as error:
            raise KernelError(
                "reading other tables' chains", errno=errno.EBADMSG, words=f"not JSON: {error}"
            ) from None

    def _place(self, rule: dict[str, Any]) -> tuple[str, str] | None:
        """Return which of our accepts a rule is. By what it says more than by its comment, which nft no longer shows
        once iptables-restore has written the rule; another cluster's on this host says the same and has its own."""
        said = [part for part in rule.get("expr", ()) if "counter" not in part and "xt" not in part]
        comment = rule.get("comment", "")
        if len(said) != 2 or "accept" not in said[1] or "match" not in said[0]:
            return None
        if comment != self._comment and _SOMEBODYS.fullmatch(comment):
            return None
        match = said[0]["match"]
        way = (
            match.get("left", {}).get("meta", {}).get("key") if isinstance(match.get("left"), dict) else None
        )
        known = (*PLACES, *_FORMER) if comment == COMMENT else PLACES
        return next((place for place in known if place == (way, match.get("right"))), None)

    def _accepts(self, rules: list[dict[str, Any]]) -> int:
        """Count our accepts; as many as there should be, but not one of each, count as one more."""
        found = sorted(place for rule in rules if (place := self._place(rule)) is not None)
        return GATE_ACCEPTS + 1 if len(found) == GATE_ACCEPTS and found != sorted(PLACES) else len(found)


def _ends_all(rule: dict[str, Any]) -> bool:
    """Tell whether a rule drops or rejects all that reaches it."""
    said = [part for part in rule.get("expr", ()) if "counter" not in part and "log" not in part]
    return len(said) == 1 and bool(_LAST_WORDS & said[0].keys())
