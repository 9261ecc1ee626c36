"""A bill of materials (CycloneDX, JSON): what an installed tensorlrf consists of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from release.contents import ReleaseError

NOT_NEEDED = ("pip", "setuptools")
"""What an empty environment has from the beginning."""


def write_bill(python: Path, version: str, path: Path) -> int:
    """The bill of the environment of a Python; how many components it names besides tensorlrf."""
    command = [
        sys.executable, "-m", "cyclonedx_py", "environment", "--output-format", "JSON",
        "--spec-version", "1.6", "--output-reproducible", "--mc-type", "library",
        "--output-file", str(path), str(python),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, text=True, check=True)
    bill = with_root(json.loads(path.read_text("utf-8")), version)
    path.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    validate(path)
    return len(bill["components"])


def with_root(bill: dict[str, Any], version: str) -> dict[str, Any]:
    """The bill with tensorlrf as what it is about, and not as one of the packages."""
    parts = [one for one in bill["components"] if one["name"] not in NOT_NEEDED]
    own = [one for one in parts if one["name"] == "tensorlrf"]
    if [one["version"] for one in own] != [version]:
        raise ReleaseError(f"the environment holds {own or 'no tensorlrf'}, not version {version}")
    kept = {one["bom-ref"] for one in parts}
    links = [
        {**one, "dependsOn": [to for to in one.get("dependsOn", []) if to in kept]}
        for one in bill["dependencies"]
        if one["ref"] in kept
    ]
    return {
        **bill,
        "metadata": {**bill.get("metadata", {}), "component": own[0]},
        "components": [one for one in parts if one is not own[0]],
        "dependencies": links,
    }


def validate(path: Path) -> None:
    """Raise ReleaseError where it is none, by the schema of CycloneDX."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text("utf-8"))
    if fault is not None:
        raise ReleaseError(f"{path.name} is no CycloneDX: {fault}")
