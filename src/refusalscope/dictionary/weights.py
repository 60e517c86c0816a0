"""Tensors of a dictionary file, read in parts: a suite of dictionaries never fits the memory.

Two kinds of file hold them, safetensors and the members of an npz. Both are mapped, so only the
rows and columns asked for leave the disk. A pickled file is refused: reading one can run code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refusalscope.errors import InputError

Index = slice | Sequence[int]
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
ALL = slice(None)


class TensorFile(Protocol):
    """A file of named tensors that can be read in parts."""

    path: Path
    names: frozenset[str]

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, *index: Index) -> Tensor:
        """A part of a tensor, float32, as a copy; one index for each dimension, all where left out."""

    def close(self) -> None: ...


class SafetensorsFile:
    """A safetensors file, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, "pt", device="cpu").__enter__()
        except (SafetensorError, OSError) as error:
            raise unreadable(path, error) from error
        self.names = frozenset(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str, *index: Index) -> Tensor:
        if not self.shape(name):
            return self._file.get_tensor(name).float()
        part = self._file.get_slice(name)[tuple(_listed(i) for i in index or (ALL,))]
        return part.to(torch.float32, copy=True).contiguous()

    def close(self) -> None:
        self._file.__exit__(None, None, None)


class NpzFile:
    """An npz file; members stored plainly are mapped, compressed ones are read whole on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
                self._members = {
                    info.filename.removesuffix(".npy"): _member(archive, info, raw, path)
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            raise unreadable(path, error) from error
        self.names = frozenset(self._members)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._members[name].shape)

    def read(self, name: str, *index: Index) -> Tensor:
        array = self._members[name]
        for axis, part in enumerate(index):
            array = array[(*[ALL] * axis, _listed(part))]
        return torch.from_numpy(np.array(array, np.float32, order="C"))

    def close(self) -> None:
        self._members = {}


@dataclass(frozen=True)
class Vectors:
    """One vector of width `d_in` a latent, read when asked for.

    by_row: whether a latent is a row of the stored matrix, or a column. factor: what each vector is
    multiplied by, one number for all or one a latent. held: all of them in memory, [latents, d_in].
    """

    file: TensorFile
    name: str
    by_row: bool
    factor: Tensor
    held: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(latents, d_in)."""
        if self.held is not None:
            return self.held.shape[0], self.held.shape[1]
        first, second = self.file.shape(self.name)
        return (first, second) if self.by_row else (second, first)

    def take(self, latents: Index) -> Tensor:
        """Vectors of some latents: [latents, d_in], float32."""
        if self.held is not None:
            return self.held[_listed(latents)]
        if self.by_row:
            vectors = self.file.read(self.name, latents)
        else:
            vectors = self.file.read(self.name, ALL, latents).T.contiguous()
        factor = self.factor if self.factor.dim() == 0 else self.factor[_listed(latents)]
        return vectors * (factor if factor.dim() == 0 else factor.unsqueeze(1))

    def scaled(self, factor: Tensor) -> Vectors:
        return replace(self, factor=self.factor * factor, held=None)

    def hold(self, device: torch.device | str) -> Vectors:
        """The same vectors, all read into memory on a device."""
        return replace(self, held=self.take(ALL).to(device))


def matrix(file: TensorFile, name: str, *, by_row: bool) -> Vectors:
    """A stored matrix seen as one vector a latent. Raises InputError where it is missing or no matrix."""
    require(file, (name,))
    if len(file.shape(name)) != 2:
        raise InputError(
            f"{name} in {file.path} has the shape {file.shape(name)}; a dictionary keeps a matrix there, "
            f"so take a file of another kind or re-save this one"
        )
    return Vectors(file, name, by_row, torch.tensor(1.0))


def require(file: TensorFile, names: Iterable[str]) -> None:
    """Raise InputError where the file lacks a tensor."""
    missing = [name for name in names if name not in file.names]
    if missing:
        raise InputError(
            f"{file.path} lacks {', '.join(missing)} (it holds {', '.join(sorted(file.names))}); "
            f"fetch the file again, or check that its architecture is the one its config names"
        )


def unreadable(path: Path, error: Exception) -> InputError:
    with path.open("rb") as raw:
        pointer = raw.read(64).startswith(b"version https://git-lfs")
    if pointer:
        return InputError(
            f"{path} is a Git LFS pointer, not the weights; fetch it with `git lfs pull`"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path} is cut short or damaged ({reason[:120]}); fetch it again")


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, raw: BinaryIO, path: Path
) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    # Name and extra field of the local header may be longer than those of the archive's index.
    raw.seek(info.header_offset + 26)
    name, extra = (int.from_bytes(raw.read(2), "little") for _ in range(2))
    raw.seek(info.header_offset + 30 + name + extra)
    version = np.lib.format.read_magic(raw)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"npy version {version} is not known")
    shape, fortran, dtype = read_header(raw)
    if dtype.hasobject:
        raise ValueError("a member is pickled, and reading it could run code")
    if shape == ():
        return np.fromfile(raw, dtype, 1).reshape(())
    offset = raw.tell()
    if fortran:
        return np.memmap(path, dtype, "r", offset=offset, shape=shape, order="F")
    return np.memmap(path, dtype, "r", offset=offset, shape=shape)


def _listed(index: Index) -> slice | list[int]:
    return index if isinstance(index, slice) else list(index)
