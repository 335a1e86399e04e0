"""Under which licence a policy's weights stand, as far as the files beside them say.

Reads a model card's front matter and config.json; asks nobody in the network and decides nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.checkpoints import POLICY, location
from components.errors import StepForgeError
from components.records import read_json

UNKNOWN = "unknown"


def licence_of(folder: Path) -> str:
    """The licence of the policy or checkpoint in `folder`, such as `apache-2.0`; `unknown` where no file says it."""
    if (folder / POLICY).exists():
        described = _json(folder / POLICY)
        if isinstance(described.get("license"), str):
            return str(described["license"])
    try:
        name, revision = location(folder)
    except StepForgeError:
        return UNKNOWN
    for path in (_file(name, revision, "README.md"), _file(name, revision, "config.json")):
        content = _front_matter(path) if path and path.suffix == ".md" else _json(path) if path else {}
        found = content.get("license")
        if isinstance(found, str) and found.strip():
            more = content.get("license_name")  # of `other`
            return str(more if found == "other" and isinstance(more, str) else found)
    return UNKNOWN


def _file(name: str, revision: str | None, file: str) -> Path | None:
    if revision is None:
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the first two lines `---` of a model card."""
    import yaml

    parts = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        content = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except StepForgeError:
        return {}
    return content if isinstance(content, dict) else {}
