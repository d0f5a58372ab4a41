"""What `align gc` shows a person."""

from __future__ import annotations

from typing import Any


def show_collected(result: dict[str, Any]) -> None:
    would = "would be erased" if result["dry_run"] else "erased"
    for one in result["erased"]:
        files = ", ".join(one["files"]) if len(one["files"]) <= 3 else f"{len(one['files'])} files"
        print(f"{would}: {one['kind']} {one['key'][:12]}: {files} ({size(one['bytes'])}); {one['why']}")
    for one in result["leftovers"]:
        print(f"{would}: {one['path']} ({size(one['bytes'])}); {one['why']}")
    for one in result["kept"]:
        print(f"kept: {one['kind']} {one['key'][:12]}: {one['why']}")
    print(f"{size(result['bytes'])} {'would be freed' if result['dry_run'] else 'freed'}; every commit record stays")
    for place in result["source"]:
        print(f"not touched, it is yours: {place} (withdrawn rows stay in it until you take them out)")


def size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
