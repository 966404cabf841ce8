"""Zip archives from strangers: the directory is judged before anything is unpacked, and nothing leaves by its name."""

import tempfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from cnnjax.weights.tensors import CHUNK, MANY, Bounded, Source, bytes_at, np, show, stream_bytes, within


def open_archive(source: Source) -> zipfile.ZipFile:
    """A zip archive whose directory is sound; its members are opened as streams, which check the CRC at their end.

    Raises: ValueError where the directory shows a bomb (more than `within` allows, members that overlap), a name that
    leads outside, a name that occurs twice, encryption, or a compression other than deflate.
    """
    archive = zipfile.ZipFile(cast(BinaryIO, Bounded(source.file)))
    infos = archive.infolist()
    if len(infos) > MANY:
        raise ValueError(f"the archive has {len(infos):,} members, more than {MANY:,}")
    names = set()
    for info in infos:
        name = info.orig_filename
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or parts[0].endswith(":") or ".." in parts or "\\" in name or "\0" in name:
            raise ValueError(f"the archive has a member that leads outside: {show(name)}")
        if name in names:
            raise ValueError(f"the archive has two members {show(name)}")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"member {show(name)} is encrypted, or compressed by another method than deflate")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise ValueError(f"member {show(name)} is not packed, and yet its sizes differ")
        names.add(name)
    if sum(info.compress_size for info in infos) > source.size:
        raise ValueError("the members of the archive overlap, or run past its end")
    within(sum(info.file_size for info in infos), source.size)
    return archive


def member_bytes(source: Source, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One member, whole, as uint8 [its size]; it is in memory once, and its CRC is right."""
    info = archive.getinfo(name)
    with archive.open(info) as stream:
        if info.compress_type != zipfile.ZIP_STORED:
            return stream_bytes(stream, info.file_size)
    # What is not packed is read straight into place: zipfile would copy it, and takes twice as long
    name_and_extra = bytes_at(source.file, info.header_offset + 26, 4).view("<u2")
    values = bytes_at(source.file, info.header_offset + 30 + int(name_and_extra.sum()), info.file_size)
    if zlib.crc32(values.data) != info.CRC:
        raise ValueError(f"Bad CRC-32 of member {show(name)}")
    return values


def unpack(source: Source, archive: zipfile.ZipFile, name: str) -> Source:
    """One member in a temporary file without a name, for readers that have to jump about in it; closes the archive."""
    file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # closed with the `Tensors` that read from it
    inner = Source(source.path / name, file, archive.getinfo(name).file_size)
    with inner.closed_on_error(), archive.open(name) as stream:
        while piece := stream.read(CHUNK):
            file.write(piece)
    file.seek(0)
    source.file.close()
    return inner
