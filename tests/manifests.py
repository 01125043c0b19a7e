"""Manifests of checkpoints, read and written without the code under test."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def content_of(checkpoint: Path) -> dict[str, Any]:
    with safe_open(checkpoint, "numpy") as file:
        content: dict[str, Any] = json.loads(file.metadata()["quantilax"])["content"]
    return content


def write_manifest(checkpoint: Path, content: Any) -> None:
    """Let a checkpoint say something else, with a sum that is right."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    metadata = {"quantilax": json.dumps({"sha256": digest, "content": content})}
    save_file(load_file(checkpoint), checkpoint, metadata)
