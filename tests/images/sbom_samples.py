"""Small SBOMs of each kind that is read."""

from __future__ import annotations

import json


def cyclonedx(*names: str, version: str = "1.6") -> bytes:
    """Return a CycloneDX file with a library of each name."""
    components = [{"type": "library", "name": name, "version": "1.0"} for name in names]
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": version, "components": components}).encode()


def spdx_2(*names: str, version: str = "2.3") -> bytes:
    """Return an SPDX 2 file with a package of each name."""
    packages = [{"SPDXID": f"SPDXRef-{name}", "name": name, "downloadLocation": "NOASSERTION"} for name in names]
    document = {
        "spdxVersion": f"SPDX-{version}",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "firmware",
        "packages": packages,
    }
    return json.dumps(document).encode()


def spdx_3(*names: str) -> bytes:
    """Return an SPDX 3 file with a package of each name, and other elements."""
    graph: list[dict[str, str]] = [
        {"type": "CreationInfo", "@id": "_:creation", "specVersion": "3.0.1"},
        {"type": "Person", "spdxId": "urn:person"},
    ]
    graph += [{"type": "software_Package", "spdxId": f"urn:{name}", "name": name} for name in names]
    return json.dumps({"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": graph}).encode()
