"""One file of the event spool: records appended, found by number, recovered up to the first that is damaged."""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from pathlib import Path

_HEADER = struct.Struct("<II")


class Segment:
    """`first` is the sequence number of its first record. Methods raise OSError; none leaves a half record behind."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self.size_bytes = 0
        self._starts = array("I")
        self._fd: int | None = None

    @property
    def end(self) -> int:
        """The sequence number after its last record."""
        return self.first + len(self._starts)

    @property
    def fd(self) -> int | None:
        """The descriptor it is written through, None when it is not being written."""
        return self._fd

    def append(self, record: bytes) -> None:
        """Write a record at the end, opening the file when needed."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        data = _HEADER.pack(len(record), zlib.crc32(record)) + record
        if os.pwrite(self._fd, data, self.size_bytes) != len(data):
            # A short write is how a disk fills up; the next append or recovery overwrites or cuts what it left.
            raise OSError(28, "No space left on device")
        self._starts.append(self.size_bytes)
        self.size_bytes += len(data)

    def read(self, sequence: int) -> bytes | None:
        """The record of that number; None when it cannot be read any more (deleted, damaged since)."""
        start = self._starts[sequence - self.first]
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                length, checksum = _HEADER.unpack(file.read(_HEADER.size))
                record = file.read(min(length, self.size_bytes))
        except (OSError, struct.error):
            return None
        return record if len(record) == length and zlib.crc32(record) == checksum else None

    def recover(self, max_record_bytes: int) -> bool:
        """Take over a file from an earlier run; True when its tail was damaged and has been cut off."""
        data = self.path.read_bytes()
        at = 0
        while at + _HEADER.size <= len(data):
            length, checksum = _HEADER.unpack_from(data, at)
            record = data[at + _HEADER.size : at + _HEADER.size + min(length, max_record_bytes)]
            # No record is empty, but a file cut by a power failure may end in zeros, whose checksum would be right.
            if not record or len(record) != length or zlib.crc32(record) != checksum:
                break
            self._starts.append(at)
            at += _HEADER.size + length
        self.size_bytes = at
        if at == len(data):
            return False
        os.truncate(self.path, at)
        return True

    def close(self) -> None:
        """Stop writing; the file stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def delete(self) -> None:
        """Remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)
