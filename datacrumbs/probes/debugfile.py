"""The files that hold what was stripped from a program or library: symbols and debug info.

By build-id (``/usr/lib/debug/.build-id/ab/cdef.debug``), by `.gnu_debuglink` (a name and a
checksum), and `.gnu_debugdata`, a compressed symbol table inside the file (Fedora, RHEL).
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

DEBUG_DIR = Path("/usr/lib/debug")
UNPACKED_BYTES_MAX = 256 << 20


def debug_symbols(elf: ELFFile, path: Path, build_id: str | None) -> Iterator[ELFFile]:
    """ELF files with symbols of ``elf``, which is the file at ``path``; often none.

    An ELF file given out is open until the next one is asked for.
    """
    if (found := find_debug_file(elf, path, build_id)) is not None:
        with found.open("rb") as file:
            yield ELFFile(file)
    if (inner := _debugdata(elf)) is not None:
        yield inner


def find_debug_file(elf: ELFFile, path: Path, build_id: str | None) -> Path | None:
    """The debug file of ``elf`` that is installed and belongs to exactly this build."""
    if build_id:
        place = DEBUG_DIR / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        if _identity(place) == build_id:
            return place
    name, checksum = _debuglink(elf)
    if not name:
        return None
    directory = path.parent
    places = (
        directory / name,
        directory / ".debug" / name,
        DEBUG_DIR / str(directory).lstrip("/") / name,
    )
    for place in places:
        if place != path and place.is_file() and _belongs(place, build_id, checksum):
            return place
    return None


def _belongs(place: Path, build_id: str | None, checksum: int) -> bool:
    if build_id:
        return _identity(place) == build_id
    with suppress(OSError):
        return zlib.crc32(place.read_bytes()) == checksum
    return False


def _identity(place: Path) -> str | None:
    """The build-id that the file ``place`` notes; None if there is none to be read.

    From its section: in a debug file the program headers may point anywhere.
    """
    try:
        with place.open("rb") as file:
            section: Any = ELFFile(file).get_section_by_name(".note.gnu.build-id")
            notes = section.iter_notes() if section is not None else ()
            return next((str(note["n_desc"]) for note in notes), None)
    except (OSError, ELFError, ValueError):
        return None


def _debuglink(elf: ELFFile) -> tuple[str, int]:
    """Name and CRC-32 of the debug file; no name where none is noted.

    The section is the name, NUL, padding to 4 bytes, and the checksum.
    """
    section = elf.get_section_by_name(".gnu_debuglink")
    data = section.data() if section is not None else b""
    raw, end, _ = data.partition(b"\0")
    name = raw.decode("utf-8", "backslashreplace")
    if not end or len(data) < 4 or "/" in name or name in ("", ".", ".."):
        return "", 0
    return name, int.from_bytes(data[-4:], "little" if elf.little_endian else "big")


def _debugdata(elf: ELFFile) -> ELFFile | None:
    section = elf.get_section_by_name(".gnu_debugdata")
    if section is None:
        return None
    with suppress(lzma.LZMAError, ELFError, EOFError):
        unpacked = lzma.LZMADecompressor().decompress(section.data(), UNPACKED_BYTES_MAX)
        return ELFFile(io.BytesIO(unpacked))
    return None
