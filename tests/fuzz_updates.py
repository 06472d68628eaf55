"""Files mutated at random: whatever comes, a reader refuses it by its own error, or reads what fits the network.

    make fuzz                                     # four minutes
    python -m tests.fuzz_updates --seconds 600    # longer

Hypothesis chooses good files and what is done to them: bytes changed, cut, put in twice; numbers in a header replaced;
pickles made of the instructions that state dicts use. An example that fails is shrunk, printed and kept in
`.hypothesis`, where the next run begins.
"""

import argparse
import atexit
import io
import json
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from torch import nn

from inversefed.errors import InversefedError
from inversefed.updates import Metadata, Update, expected_tensors, read_update, write_update

NETWORK = expected_tensors(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)))
SUFFIXES = (".safetensors", ".npz", ".pt")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
atexit.register(shutil.rmtree, FOLDER)
SLOW = 2.0
"""Seconds of processor time that no file may take."""
DONE = {"read": 0, "refused": 0}


def good(suffix: str) -> bytes:
    file = FOLDER / f"good{suffix}"
    write_update(file, Update(NETWORK, Metadata("gradient", 0.1, num_examples=4)))
    return file.read_bytes()


GOOD = {suffix: good(suffix) for suffix in SUFFIXES}


def judged(suffix: str, data: bytes) -> None:
    """Refused by an error of this package, or read as what fits the network."""
    file = FOLDER / f"file{suffix}"
    file.write_bytes(data)
    for expected, strict in ((NETWORK, True), (NETWORK, False), (None, True)):
        began = time.process_time()
        try:
            update = read_update(file, expected, strict=strict)
        except InversefedError as error:
            DONE["refused"] += 1
            assert str(error).isprintable() and len(str(error)) < 2000
        else:
            DONE["read"] += 1
            if expected is not None and strict:
                assert all(tensor.shape == NETWORK[name].shape for name, tensor in update.tensors.items())
            assert all(tensor.layout == torch.strided and tensor.is_contiguous() for tensor in update.tensors.values())
            assert sum(tensor.nbytes for tensor in update.tensors.values()) <= 4 * len(data) + 2**21
        assert time.process_time() - began < SLOW


edits = some.lists(
    some.tuples(
        some.sampled_from(["set", "cut", "put", "copy"]),
        some.integers(0, 2**16),
        some.binary(min_size=1, max_size=9) | some.integers(0, 2**64 - 1).map(lambda value: struct.pack("<Q", value)),
    ),
    min_size=1,
    max_size=5,
)


def edited(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for what, where, piece in changes:
        place = where % (len(data) + 1)
        # What describes tensors is short and stands at both ends.
        place = place if where % 3 else max(0, len(data) - where % 3000)
        match what:
            case "set":
                data = data[:place] + piece + data[place + len(piece) :]
            case "cut":
                data = data[:place] + data[place + piece[0] :]
            case "put":
                data = data[:place] + piece + data[place:]
            case "copy":
                data = data[:place] + data[: piece[0] * 8] + data[place:]
    return data


def bytes_that_changed(suffix: str, changes: list[tuple[str, int, bytes]]) -> None:
    judged(suffix, edited(GOOD[suffix], changes))


numbers = some.integers(-(2**70), 2**70) | some.sampled_from([0, 1, 3, 8, 18, 72, 96, 2**31, 2**32, 2**63])
anything = some.recursive(
    some.none() | some.booleans() | numbers | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
entries = some.fixed_dictionaries(
    {
        "dtype": some.sampled_from(["F32", "F64", "F16", "BF16", "I64", "BOOL", "F8_E5M2", ""]) | anything,
        "shape": some.lists(numbers, max_size=4) | anything,
        "data_offsets": some.lists(numbers, min_size=2, max_size=2) | anything,
    }
)
headers = some.dictionaries(
    some.sampled_from([*NETWORK, "__metadata__", "x"]) | some.text(max_size=6), entries | anything, max_size=6
)


def headers_of_safetensors(header: dict, data: bytes, off: int) -> None:
    raw = json.dumps(header).encode()
    judged(".safetensors", struct.pack("<Q", max(0, len(raw) + off)) + raw + data)


def metadata(others: dict[str, str], name: str, value: str) -> None:
    judged(
        ".safetensors",
        safetensors.torch.save({n: t.detach().clone() for n, t in NETWORK.items()}, others | {name: value}),
    )


CODES = [b"}", b"]", b")", b"(", b"N", b"\x88", b"\x89", b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a", b"e", b"R"]
MEMORY = [b"b", b"Q", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"r\xff\xff\xff\x7f", b"\x94", b"\x93"]
NUMBERS = [b"K\x03", b"K\x00", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x09\0\0\0\0\0\0\0\0\x01"]
TEXTS = [
    b"X" + struct.pack("<L", len(text)) + text for text in (b"3.bias", b"storage", b"0", b"cpu", b"model", b"kind")
]
PATHS = ("collections OrderedDict", "torch Size", "torch FloatStorage", "os system")
NAMED = [b"c%b\n%b\n" % tuple(path.encode().split()) for path in PATHS]
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)
"""A good tensor of three numbers."""


def around(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in (("a/data.pkl", data), ("a/byteorder", b"little"), ("a/data/0", bytes(12))):
            archive.writestr(name, part)
    return file.getvalue()


def pickles_of_known_words(program: list[bytes]) -> None:
    judged(".pt", around(b"\x80\x02" + b"".join(program) + b"."))


def pickles_that_changed(changes: list[tuple[str, int, bytes]]) -> None:
    judged(".pt", around(edited(b"\x80\x02}(X\x06\x00\x00\x003.bias" + TENSOR + b"u.", changes)))


descriptions = some.tuples(
    some.sampled_from(["'<f4'", "'<f8'", "'|b1'", "'|O'", "'<U3'", "'<U4294967295'", "[('a','<f4')]"])
    | some.text(max_size=9),
    some.sampled_from(["True", "False", "1"]),
    some.lists(numbers, max_size=4).map(lambda sides: repr(tuple(sides))) | some.text(max_size=9),
)


def arrays_of_numpy(arrays: list, deflated: bool) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, (descr, columns, shape), data in {each[0]: each for each in arrays}.values():
            text = f"{{'descr': {descr}, 'fortran_order': {columns}, 'shape': {shape}, }}\n".encode("utf-8", "replace")
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    judged(".npz", file.getvalue())


TARGETS: dict[Callable, tuple] = {
    bytes_that_changed: (
        some.sampled_from(SUFFIXES),
        edits,
    ),
    headers_of_safetensors: (
        headers,
        some.binary(max_size=64),
        some.integers(-2, 2),
    ),
    metadata: (
        some.dictionaries(some.text(max_size=12), some.text(max_size=12), max_size=4),
        some.sampled_from([*Metadata().__dict__]),
        some.text(max_size=24),
    ),
    pickles_of_known_words: (
        some.lists(some.sampled_from([*CODES, *MEMORY, *NUMBERS, *TEXTS, *NAMED, TENSOR]), max_size=40),
    ),
    pickles_that_changed: (edits,),
    arrays_of_numpy: (
        some.lists(
            some.tuples(
                some.sampled_from([*NETWORK, "kind", "arr_0", "arr_1"]), descriptions, some.binary(max_size=32)
            ),
            max_size=4,
        ),
        some.booleans(),
    ),
}
"""What is tried, and on what."""


def run(target: Callable, seconds: float, most: int = 10**9, same: bool = False) -> int:
    """Rounds of examples until the time is over; how many there were. `same`: those of every other such run."""
    ends, count = time.monotonic() + seconds, 0
    while count < most and time.monotonic() < ends:
        size = min(200, most - count)
        checks = list(HealthCheck)
        chosen = settings(max_examples=size, deadline=None, suppress_health_check=checks, derandomize=same)
        chosen(given(*TARGETS[target])(target))()
        count += size
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240)
    seconds = parser.parse_args().seconds
    for target in TARGETS:
        count = run(target, seconds / len(TARGETS))
        sys.stdout.write(f"{target.__name__:24} {count:>8} files\n")
    sys.stdout.write(f"read {DONE['read']}, refused {DONE['refused']}; nothing else happened\n")


if __name__ == "__main__":
    main()
