"""exactq targets: the runtimes that are known, and what this machine is."""

from __future__ import annotations

from typing import Any

from exactq.cli.options import Json


def targets(*, as_json: Json = False) -> None:
    """List the runtimes and their instruction sets.

    Those whose integers were measured, and this machine's.
    """
    from exactq.cli.talking import print_json, print_table
    from exactq.errors import TargetError
    from exactq.targets import TARGETS

    found: list[dict[str, Any]] = []
    for target in TARGETS.values():
        try:
            here = target.detect_isa()
        except TargetError:
            here = None
        found.append({"target": target.name, "version": target.version, "isas": list(target.isas), "here": here})
    if as_json:
        print_json(found)
    else:
        rows = [(f["target"], f["version"], ", ".join(f["isas"]), f["here"] or "not measured") for f in found]
        print_table("targets", ("target", "version", "measured instruction sets", "this machine"), rows)
