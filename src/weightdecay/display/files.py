"""Files that are there in full or not at all."""

import os
from pathlib import Path
from secrets import token_hex

__all__ = ["write"]


def write(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it, at any moment or after a crash, meets the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
