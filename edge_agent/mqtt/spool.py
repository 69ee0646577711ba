"""Events on disk until the broker has acknowledged them: they survive restarts of agent, broker and board.

The folder holds segments and a mark:

    events-<first sequence number>.log    records, appended: length u32, CRC-32 u32 (little endian), then msgpack
                                          [topic, body, user properties]
    acked                                 sequence number u64, CRC-32 u32: the first event that the broker lacks

Rules: an event leaves when the broker acknowledged it, or with the oldest segment when the spool is full (counted in
`lost`). A torn or damaged record ends its segment: the rest is cut off (counted in `cut`), the segments after it are
used. A stale mark causes events to be sent twice, never to be lost; (boot_id, seq) in the event shows the
duplicate. When the disk cannot be written, a few events wait in memory and `trouble` says why; a folder that is not
there yet (a card that is read-only at the start, a late mount) is opened as soon as it can be.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from array import array
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge_agent.base.limits import EVENT_BYTES, SPOOL_BYTES, SPOOL_EVENTS
from edge_agent.protocol.envelope import Outbound

_HEADER = struct.Struct("<II")


class Segment:
    """One file of the spool: records appended, found by number, recovered up to the first damaged one.

    `first` is the sequence number of its first record. Methods raise OSError; none leaves half a record behind.
    """

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
            # A full disk causes a short write; the next append overwrites the rest, or recovery cuts it off.
            raise OSError(28, "No space left on device")
        self._starts.append(self.size_bytes)
        self.size_bytes += len(data)

    def read(self, sequence: int) -> bytes | None:
        """The record of that number; None when it can no longer be read (deleted, damaged since)."""
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
            # No record is empty, but after a power failure a file may end in zeros, whose checksum would match.
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


# An event and the little around it.
RECORD_BYTES = EVENT_BYTES + 4096
# Dropping the oldest segment loses at most this share of the spool.
SEGMENTS = 16
MEMORY_EVENTS = 64
UNOPENED = 1 << 62
"""Events are numbered from here until the folder could be opened. An event that the broker acknowledges after that is
then unknown by its old number, and is sent twice rather than taken for another one."""
_MARK = struct.Struct("<QI")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, bytes, dict[str, str]])


class Spool:
    """A bounded queue of messages in a folder, for one process. Nothing raises OSError."""

    def __init__(
        self, folder: Path, max_bytes: int = SPOOL_BYTES, max_events: int = SPOOL_EVENTS, sync_always: bool = False
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._sync_always = sync_always
        self.lost = 0
        self.cut = 0
        self.trouble: str | None = None
        self._memory: deque[tuple[int, Outbound]] = deque(maxlen=MEMORY_EVENTS + 1)
        self._unsynced: dict[Path, int] = {}
        self._segments: list[Segment] = []
        self._head = self._next = UNOPENED
        self._open()

    def __len__(self) -> int:
        on_disk = sum(max(0, segment.end - max(segment.first, self._head)) for segment in self._segments)
        return on_disk + len(self._memory)

    def append(self, message: Outbound) -> None:
        """Keep a message; the oldest are dropped when there is no room."""
        self._memory.append((self._next, message))
        self._next += 1
        self._write_memory()
        while len(self._memory) > MEMORY_EVENTS:
            self._memory.popleft()
            self.lost += 1
        self._make_room()

    def oldest(self) -> tuple[int, Outbound] | None:
        """The next message to send with the token that `pop` wants, or None."""
        while self._segments:
            segment = self._segments[0]
            self._head = max(self._head, segment.first)
            message = self._decoded(segment) if self._head < segment.end else None
            if message is not None:
                return self._head, message
            if segment.end > self._head:
                self.cut += segment.end - self._head
                self._head = segment.end
            self._drop_oldest()
        return self._memory[0] if self._memory else None

    def pop(self, token: int) -> None:
        """The broker has acknowledged the message of that token; one that was dropped meanwhile is no error."""
        if self._memory and self._memory[0][0] == token:
            self._memory.popleft()
        elif token == self._head:
            self._head += 1
        self._forget_sent()
        if self._next < UNOPENED:
            with contextlib.suppress(OSError):
                self._write_mark()

    def give_up(self, token: int) -> None:
        """The message of that token can never be sent."""
        self.lost += 1
        self.pop(token)

    def take_unsynced(self) -> list[int]:
        """Descriptors of files that were not yet synced; hand them to `sync`, in any thread."""
        taken = list(self._unsynced.values())
        self._unsynced.clear()
        return taken

    @staticmethod
    def sync(descriptors: Iterable[int]) -> None:
        """Force what `take_unsynced` gave out to the disk, and close it. Blocks. An error of the disk is left to the
        next write to notice."""
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Sync everything to the disk and close the files."""
        self.sync(self.take_unsynced())
        for segment in self._segments:
            segment.close()

    # ---- writing ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Take over what an earlier run left, and number the events that wait in memory after it."""
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                above = self._folder.parent  # where its name is kept
                self._note_unsynced(above, os.open(above, os.O_RDONLY | os.O_CLOEXEC))
            self._segments = self._recover()
        except OSError as error:
            self.trouble = f"events are kept in memory only: {error.strerror or error}"
            return
        self._head = max(self._read_mark(), self._segments[0].first if self._segments else 0)
        self._next = max(self._head, self._segments[-1].end if self._segments else 0)
        for index in range(len(self._memory)):
            self._memory[index] = (self._next, self._memory[index][1])
            self._next += 1
        self._forget_sent()

    def _write_memory(self) -> None:
        """Move the events that wait in memory to the disk, as far as it can be written."""
        if self._next >= UNOPENED:
            self._open()
            if self._next >= UNOPENED:
                return
        try:
            while self._memory:
                sequence, message = self._memory[0]
                record = _encoder.encode((message.topic, message.payload, dict(message.user)))
                if len(record) <= RECORD_BYTES:
                    self._write(sequence, record)
                else:
                    self.lost += 1
                self._memory.popleft()
            self.trouble = None
        except OSError as error:
            self.trouble = f"events are kept in memory only: {error.strerror or error}"

    def _write(self, sequence: int, record: bytes) -> None:
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.end != sequence or self._segment_full(segment):
            if segment is not None:
                segment.close()
            segment = Segment(self._folder / f"events-{sequence:020d}.log", sequence)
            segment.append(record)
            self._segments.append(segment)
            self._note_unsynced(self._folder, os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC))
        else:
            segment.append(record)
        if segment.fd is not None and segment.path not in self._unsynced:
            self._note_unsynced(segment.path, os.dup(segment.fd))
        if self._sync_always:
            self.sync(self.take_unsynced())

    def _note_unsynced(self, path: Path, descriptor: int) -> None:
        if path in self._unsynced:
            os.close(descriptor)
        else:
            self._unsynced[path] = descriptor

    def _segment_full(self, segment: Segment) -> bool:
        few = max(1, self._max_events // SEGMENTS)
        return segment.size_bytes >= self._max_bytes // SEGMENTS or segment.end - segment.first >= few

    def _make_room(self) -> None:
        while len(self._segments) > 1 and (
            sum(segment.size_bytes for segment in self._segments) > self._max_bytes or len(self) > self._max_events
        ):
            segment = self._segments[0]
            lost = max(0, segment.end - max(segment.first, self._head))
            self.lost += lost
            self._head = max(self._head, segment.end)
            self._drop_oldest()

    def _forget_sent(self) -> None:
        """Delete segments whose events were all acknowledged."""
        while self._segments and self._segments[0].end <= self._head:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        segment = self._segments.pop(0)
        with contextlib.suppress(OSError):
            segment.delete()

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _decoded(self, segment: Segment) -> Outbound | None:
        record = segment.read(self._head)
        if record is None:
            return None
        try:
            topic, payload, user = _decoder.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return Outbound(topic, payload, qos=1, user=user, keep="disk")

    def _recover(self) -> list[Segment]:
        segments: list[Segment] = []
        for path in sorted(self._folder.glob("events-*.log")):
            number = path.stem.removeprefix("events-")
            if not number.isdecimal() or (segments and int(number) < segments[-1].end):
                continue
            segment = Segment(path, int(number))
            self.cut += segment.recover(RECORD_BYTES)
            if segment.end > segment.first:
                segments.append(segment)
            else:
                path.unlink(missing_ok=True)
        return segments

    def _read_mark(self) -> int:
        try:
            sequence, checksum = _MARK.unpack((self._folder / "acked").read_bytes())
        except (OSError, struct.error):
            return 0
        return int(sequence) if zlib.crc32(struct.pack("<Q", sequence)) == checksum else 0

    def _write_mark(self) -> None:
        data = _MARK.pack(self._head, zlib.crc32(struct.pack("<Q", self._head)))
        descriptor = os.open(self._folder / "acked", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)
