"""Inputs of `handtailor predict`: files, folders, patterns, webcams, lists of images with boxes, sides and cameras."""

import csv
import dataclasses
import glob
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from handtailor_jax.detections import check_id
from handtailor_jax.errors import InputError, check_fields, naming, read_file, read_json, warn
from handtailor_jax.geometry.cameras import intrinsic_matrix
from handtailor_jax.images import SUFFIXES, box_numbers
from handtailor_jax.types import Box, Side
from handtailor_jax.video.files import VIDEOS

_BOX, _CAMERA = ("x", "y", "w", "h"), ("fx", "fy", "cx", "cy")
_FIELDS = ("image", "id", "side", "box", "camera")
_LISTS = {".json", ".jsonl", ".csv", ".tsv", ".txt"}
_LIST = "give a CSV file with the columns image, x, y, w, h, side, fx, fy, cx, cy, or JSON (docs/cli.md)"


@dataclasses.dataclass(frozen=True)
class Source:
    """One image, video or webcam."""

    id: str
    """Name of the result's files, without suffix."""
    path: Path | int
    """File, or number of a webcam."""
    video: bool = False
    """Whether the source is a video or webcam."""
    camera: Any = None
    """Intrinsics of the images; None if unknown."""
    box: Box | None = None
    """Box (x, y, w, h) in pixels around the only hand to recover, in a video in its first frame."""
    side: Side | None = None
    """Side of all hands; None if unknown."""

    @property
    def file(self) -> Path:
        """File of an image."""
        assert isinstance(self.path, Path)
        return self.path


def find_sources(inputs: Sequence[str], **known: Any) -> list[Source]:
    """Return the sources that arguments name: files, folders, patterns, numbers of webcams.

    `known` may give `camera`, `box` and `side` for all of them.

    Raises:
        InputError: If an argument names nothing.
    """
    if not inputs:
        raise InputError("no inputs: name images, folders, patterns, videos or the number of a webcam")
    taken: set[str] = set()
    return [_source(found, taken, **known) for found in itertools.chain.from_iterable(map(_paths, inputs))]


def read_list(path: Path, **known: Any) -> list[Source]:
    """Read a list of images and videos with their boxes, sides and cameras: JSON if it ends in .json, otherwise CSV.

    docs/cli.md lists the fields. Paths are relative to the file. `known` may give `camera`, `box` and `side` for the
    images for which the list does not.

    Raises:
        InputError: If the file cannot be read or a line is invalid; the message names the line and the field.
    """
    entries = _json_entries(path) if path.suffix.lower() == ".json" else _csv_entries(path)
    sources: list[Source] = []
    taken: set[str] = set()
    for where, entry in entries:
        with naming(f"{path}: {where}"):
            found, id, own = _checked(path, entry)
            sources.append(_source(found, taken, id, **(known | own)))
    if not sources:
        raise InputError(f"{path}: lists no images: {_LIST}")
    return sources


def _source(found: Path | int, taken: set[str], id: str | None = None, **known: Any) -> Source:
    """Return a source, with a name that differs from all in `taken`, ignoring case; add the name to `taken`."""
    name = id or (f"webcam{found}" if isinstance(found, int) else os.fsencode(found.stem).decode("utf-8", "replace"))
    if id is not None and id.lower() in taken:
        raise InputError(f"id {id!r} is used twice: give different ids")
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    unique = next(each for each in names if each.lower() not in taken)
    taken.add(unique.lower())
    return Source(unique, found, isinstance(found, int) or found.suffix.lower() in VIDEOS, **known)


def _json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_json(path, _LIST)
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: entry {number}: is not a JSON object: {_LIST}")
        yield f"entry {number}", {key: value for key, value in entry.items() if value is not None}


def _csv_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a CSV file in the form of JSON entries."""
    with naming(path):
        try:
            text = read_file(path, 2**28, _LIST).decode("utf-8-sig")
            rows = csv.reader(io.StringIO(text, newline=""), strict=True)
            header = [name.strip() for name in next(rows, [])]
            for mark, name in ((";", "semicolons"), ("\t", "tabs")):
                if len(header) == 1 and mark in header[0]:
                    raise InputError(f"separates its cells with {name}: use commas")
            if len(set(header)) < len(header):
                raise InputError("names a column twice in its first line: give each once")
            for cells in rows:
                where = f"line {rows.line_num}"
                if len(cells) != len(header) and cells:
                    problem = f"{where}: has {len(cells)} cells, and the first line {len(header)}"
                    raise InputError(f"{problem}: give as many, empty ones where nothing is known")
                given = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
                if given:
                    with naming(where):
                        entry = {"box": _group(given, _BOX), "camera": _group(given, _CAMERA), **given}
                    yield where, {key: value for key, value in entry.items() if value is not None}
        except UnicodeDecodeError:
            raise InputError(f"cannot be read as text: {_LIST}") from None
        except csv.Error as error:
            raise InputError(f"line {rows.line_num}: is not CSV ({error}): {_LIST}") from None


def _group(given: dict[str, Any], names: Sequence[str]) -> list[float] | None:
    """Remove the named columns from a line and return their numbers; None if the line has none of them."""
    cells = {name: given.pop(name) for name in names if name in given}
    if not cells:
        return None
    if missing := [name for name in names if name not in cells]:
        raise InputError(f"has {', '.join(cells)} without {', '.join(missing)}: give all of {', '.join(names)} or none")
    for name, cell in cells.items():
        try:
            float(cell)
        except ValueError:
            raise InputError(f"{name} is {cell[:40]!r}: give a number") from None
    return [float(cell) for cell in cells.values()]


def _checked(path: Path, entry: dict[str, Any]) -> tuple[Path, str | None, dict[str, Any]]:
    """Return the path, the id, and the given side, box and camera of an entry."""
    check_fields(path, entry, _FIELDS, ())
    image, id, side = entry.get("image"), entry.get("id"), entry.get("side")
    if not isinstance(image, str) or not image or "\0" in image:
        raise InputError("has no image: give the path of an image")
    # Path.is_file raises for names that are too long.
    if not os.path.isfile(path.parent / image):  # noqa: PTH113
        problem = "is a folder, not an image" if os.path.isdir(path.parent / image) else "no such file"  # noqa: PTH112
        raise InputError(f"image {image[:200]}: {problem}: give its path, from the folder of this file")
    if id is not None:
        id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
        check_id(id)
    if side not in (None, *get_args(Side)):
        raise InputError(f"side is {side!r}: use right or left, or leave it out")
    known: dict[str, Any] = {} if side is None else {"side": side}
    if entry.get("box") is not None:
        known["box"] = box_numbers(entry["box"])
    if entry.get("camera") is not None:
        known["camera"] = intrinsic_matrix(entry["camera"])
    return path.parent / image, id, known


def _paths(given: str) -> list[Path | int]:
    """Return the files or the webcam that one argument names."""
    path = Path(given)
    if given.isdecimal() and not os.path.exists(given):  # noqa: PTH110 - Path.exists raises for names that are too long
        if len(given) > 4:
            raise InputError(f"{given[:40]}: no webcam has this number: give 0 for the first, 1 for the second")
        return [int(given)]
    if os.path.isdir(given):  # noqa: PTH112
        try:
            found = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            files = [p for p in found if p.is_file()]
            inside = [p for p in files if p.suffix.lower() in SUFFIXES | VIDEOS]
            _warn_of_broken_links(given, found)
        except OSError as error:
            raise InputError(f"{given}: cannot be read ({error.strerror}): check its permissions") from None
        if not inside:
            raise InputError(f"{given}: holds no files with a suffix of images or videos: name a folder that does")
        _warn_of_ignored(given, sorted({*files} - {*inside}), "without a suffix of images or videos")
        return list(inside)
    if os.path.exists(given):  # noqa: PTH110
        if path.suffix.lower() in _LISTS:
            remedy = f"give a list of images as --inputs {given}, keypoints to `handtailor fit`"
            raise InputError(f"{given}: is neither an image nor a video: {remedy}")
        return [path]
    matches = sorted(map(Path, glob.glob(given, recursive=True)))  # noqa: PTH207 - any pattern
    files = [match for match in matches if match.is_file()]
    if not files:
        problem = "is a link to a missing file" if path in matches else "no such file, folder or pattern"
        raise InputError(f"{given}: {problem}: correct its name")
    _warn_of_broken_links(given, matches)
    return list(files)


def _warn_of_broken_links(given: str, paths: Sequence[Path]) -> None:
    _warn_of_ignored(given, [p for p in paths if p.is_symlink() and not p.exists()], "links to missing files")


def _warn_of_ignored(given: str, paths: Sequence[Path], why: str) -> None:
    if paths:
        names = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
        warn(f"{given}: {len(paths)} file{'s' if len(paths) > 1 else ''} ignored, {why}: {names}")
