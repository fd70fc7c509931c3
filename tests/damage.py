"""Damage as disks and transfers do it."""

from pathlib import Path


def flip_a_bit(file: Path, at: int | None = None) -> None:
    """Change one bit of a file: of the byte at a place, or of the one in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    file.write_bytes(content)
