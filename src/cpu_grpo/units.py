"""Amounts of memory and time as people read and write them."""

import re

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def in_bytes(text: str) -> int | None:
    """`4GiB`, `3.5 GB` or `800 MB` as bytes; None where the text is no amount."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B)\s*", text, re.IGNORECASE)
    amount = round(float(found[1]) * UNITS[found[2].upper()]) if found and found[2].upper() in UNITS else 0
    return amount or None


def gigabytes(size: float) -> str:
    """Bytes in GB of 10^9."""
    return f"{size / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
