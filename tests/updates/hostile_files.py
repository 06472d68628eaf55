"""Files that no reader may believe: each function writes one, for a network of a `1.weight` [3, 12] and a `1.bias` [3].

    python -m tests.updates.hostile_files FOLDER CANARY

writes them all, reads each as `inversefed audit` would, and writes what happened to standard output as JSON: the error,
the processor time, the memory, and what Python's audit events saw.
"""

import io
import json
import os
import pickle
import resource
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from inversefed import freeze
from inversefed.updates.update import Update, as_observation, expected_tensors, read_update, write_update

WEIGHT, BIAS = torch.linspace(-1, 1, 36).view(3, 12), torch.tensor([0.5, -0.25, -0.25])
EXTRA = torch.ones(3)
GOOD = {"1.weight": WEIGHT, "1.bias": BIAS}
CORPUS: dict[str, Callable[[Path], object]] = {}
CANARY = Path("ran")


def hostile(suffix: str) -> Callable:
    def register(write: Callable[[Path], object]) -> Callable[[Path], object]:
        CORPUS[f"{write.__name__}{suffix}"] = write
        return write

    return register


def module() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


# --- safetensors


def header(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def described(**changes: object) -> bytes:
    """A good file, but for what is changed about its weight."""
    weight = {"dtype": "F32", "shape": [3, 12], "data_offsets": [0, 144]} | changes
    bias = {"dtype": "F32", "shape": [3], "data_offsets": [144, 156]}
    return header(json.dumps({"1.weight": weight, "1.bias": bias}), bytes(156))


def empties(count: int) -> str:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return "{" + ",".join(f'"a{index}":{entry}' for index in range(count)) + "}"


ST = ".safetensors"
SAFETENSORS = {
    "header_of_a_terabyte": lambda: header("{}", length=2**40),
    "header_of_all_there_is": lambda: header("{}", length=2**64 - 1),
    "header_beyond_the_end": lambda: header("{}", length=100_000),
    "empty_file": lambda: b"",
    "seven_bytes": lambda: b"\x10\0\0\0\0\0\0",
    "no_tensor": lambda: header("{}"),
    "no_object": lambda: header("[1, 2]"),
    "no_json": lambda: header("{'1.weight'}"),
    "no_unicode": lambda: header(b'{"\xff\xfe": 1}'),
    "two_hundred_thousand_tensors": lambda: header(empties(200_000)),
    "as_many_tensors_as_the_header_holds": lambda: header(empties(62_000)),
    "lists_without_end": lambda: header('{"a":[' + ",".join(["[]"] * 1_300_000) + "]}"),
    "deep_json": lambda: header('{"a":' + "[" * 30_000),
    "number_of_5000_digits": lambda: described().replace(b"144]", b"1" * 5000 + b"]"),
    "long_number": lambda: header('{"a":{"dtype":"F32","shape":[' + "1" * 5000 + '],"data_offsets":[0,0]}}'),
    "overlap": lambda: described(data_offsets=[12, 156]),
    "gap": lambda: header(
        '{"1.weight":{"dtype":"F32","shape":[3,12],"data_offsets":[0,144]},'
        '"1.bias":{"dtype":"F32","shape":[3],"data_offsets":[160,172]}}',
        bytes(172),
    ),
    "behind_the_end": lambda: described() + bytes(4096),
    "cut_short": lambda: described()[:-20],
    "name_twice": lambda: header(
        '{"1.weight":{"dtype":"F32","shape":[3,12],"data_offsets":[0,144]},'
        '"1.weight":{"dtype":"F32","shape":[3,12],"data_offsets":[0,144]}}',
        bytes(144),
    ),
    "shape_twice": lambda: header('{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    "shape_of_terabytes": lambda: described(shape=[10**12]),
    "shape_that_overflows": lambda: described(shape=[2**32, 2**32], data_offsets=[0, 0]),
    "shape_of_a_billion_sides": lambda: described(shape=[1] * 100_000),
    "shape_below_zero": lambda: described(shape=[-3, -12]),
    "shape_of_truths": lambda: described(shape=[True, 36]),
    "shape_of_fractions": lambda: described(shape=[1.5, 24]),
    "shape_of_text": lambda: described(shape="36"),
    "place_below_zero": lambda: described(data_offsets=[-144, 0]),
    "place_backwards": lambda: described(data_offsets=[144, 0]),
    "format_unknown": lambda: described(dtype="F8_E4M3"),
    "format_no_text": lambda: described(dtype=["F32"]),
    "format_complex": lambda: described(dtype="C64", shape=[3, 6]),
    "whole_numbers": lambda: described(dtype="I32"),
    "another_shape": lambda: described(shape=[12, 3]),
    "extra_key": lambda: described(strides=[0, 0]),
    "metadata_no_text": lambda: header('{"__metadata__":{"kind":["gradient"]}}'),
    "rate_not_a_number": lambda: safetensors.torch.save(GOOD, {"learning_rate": "nan"}),
    "rate_of_a_novel": lambda: safetensors.torch.save(GOOD, {"learning_rate": "1" * 1_000_000}),
    "steps_without_end": lambda: safetensors.torch.save(GOOD, {"kind": "weight_delta", "local_steps": "9" * 30}),
    "a_million_examples": lambda: safetensors.torch.save(GOOD, {"num_examples": "100000000"}),
    "as_many_examples_as_the_memory_holds": lambda: safetensors.torch.save(GOOD, {"num_examples": "900000"}),
    "kind_of_code": lambda: safetensors.torch.save(GOOD, {"kind": "<img src=x onerror=alert(1)>"}),
    "not_a_number": lambda: safetensors.torch.save(GOOD | {"1.bias": torch.full((3,), torch.nan)}),
    "infinite": lambda: safetensors.torch.save(GOOD | {"1.weight": torch.full((3, 12), -torch.inf)}),
    "name_of_a_path": lambda: safetensors.torch.save(GOOD | {"../../x": EXTRA}),
    "name_of_a_script": lambda: safetensors.torch.save(GOOD | {"<script>alert(1)</script>": EXTRA}),
    "name_of_a_terminal": lambda: safetensors.torch.save(GOOD | {"\x1b]0;owned\x07\x1b[2J\u202e": EXTRA}),
    "name_of_a_novel": lambda: safetensors.torch.save(GOOD | {"x" * 100_000: EXTRA}),
    "name_of_nothing": lambda: safetensors.torch.save(GOOD | {"": EXTRA}),
    "larger_than_the_network": lambda: safetensors.torch.save({"1.weight": torch.zeros(2_000_000)}),
}
for each, make in SAFETENSORS.items():
    CORPUS[each + ST] = lambda path, make=make: path.write_bytes(make())


@hostile(ST)
def claims_what_a_sparse_file_has(path: Path) -> None:
    """Two gigabytes that are not on the disk, but would be in memory."""
    size = 2**31
    text = json.dumps({"1.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    path.write_bytes(header(text))
    os.truncate(path, 8 + len(text) + size)


@hostile(ST)
def larger_than_any_update(path: Path) -> None:
    path.write_bytes(described())
    os.truncate(path, 2**33)


@hostile(ST)
def pipe_that_never_ends(path: Path) -> None:
    os.mkfifo(path)


@hostile(ST)
def device_that_never_ends(path: Path) -> None:
    path.symlink_to("/dev/zero")


@hostile(ST)
def folder(path: Path) -> None:
    path.mkdir()


# --- npz


def packed(path: Path, parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in parts:
            archive.writestr(name, data)


def array(descr: str = "'<f4'", shape: str = "(3,)", data: bytes = bytes(12), length: int | None = None) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + data


NPZ = {
    "claims_200_gigabytes": [("1.bias.npy", array(shape="(50000000000,)"))],
    "sides_below_zero": [("1.bias.npy", array(shape="(-3,)"))],
    "objects": [("1.bias.npy", array("'|O'", data=pickle.dumps([print])))],
    "records": [("1.bias.npy", array("[('a', '<f4')]"))],
    "code_in_the_header": [("1.bias.npy", array("__import__('os').system('touch ran')"))],
    "deep_header": [("1.bias.npy", array("(" * 3000 + ")" * 3000))],
    "long_header": [("1.bias.npy", b"\x93NUMPY\x02\x00" + struct.pack("<L", 2**31) + b"{")],
    "long_text": [("1.bias.npy", array("'<U9999'", "()", bytes(12)))],
    "text_for_numbers": [("1.bias.npy", array("'<U1'", data="abc".encode("utf-32-le")))],
    "other_end_first": [("1.bias.npy", array("'>f4'"))],
    "pickle_inside": [("1.bias.pkl", pickle.dumps(print))],
    "no_header": [("1.bias.npy", b"hello")],
    "cut_array": [("1.bias.npy", array(data=bytes(8)))],
    "path_upwards": [("../../1.bias.npy", array())],
    "path_from_the_root": [("/etc/1.bias.npy", array())],
    "path_of_windows": [("C:\\1.bias.npy", array())],
    "array_twice": [("1.bias.npy", array()), ("1.bias.npy", array())],
    "positions_that_do_not_fit": [("arr_0.npy", array()), ("arr_1.npy", array())],
    "nothing_inside": [],
}
for each, parts in NPZ.items():
    CORPUS[f"{each}.npz"] = lambda path, parts=parts: packed(path, parts)


@hostile(".npz")
def bomb(path: Path) -> None:
    """256 MB of zeros in 249 kB."""
    np.savez_compressed(path, **{"1.weight": np.zeros(2**26, dtype=np.float32)})


@hostile(".npz")
def bomb_that_lies(path: Path) -> None:
    """A small part, by what the directory says; its bytes unpack to 64 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zipped = packer.compress(array() + bytes(2**26)) + packer.flush()
    name, size = b"1.bias.npy", len(array())
    sizes = struct.pack("<LLL", zlib.crc32(array()), len(zipped), size)
    local = b"PK\x03\x04" + struct.pack("<5H", 20, 0, 8, 0, 0) + sizes + struct.pack("<2H", len(name), 0) + name
    central = (
        b"PK\x01\x02"
        + struct.pack("<6H", 20, 20, 0, 8, 0, 0)
        + sizes
        + struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, 0)
    )
    start = len(local) + len(zipped)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(central) + len(name), start, 0)
    path.write_bytes(local + zipped + central + name + end)


@hostile(".npz")
def many_small_bombs(path: Path) -> None:
    parts = [(f"a{index}.npy", array(shape="(16000,)", data=bytes(64000))) for index in range(1000)]
    packed(path, parts, zipfile.ZIP_DEFLATED)


@hostile(".npz")
def quoted_bomb(path: Path) -> None:
    """Many records of one part: what takes 1 MB is read a thousand times."""
    packed(path, [(f"a{index}.npy", array(shape="(3,)")) for index in range(50)])
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    while at >= 0:
        raw[at + 42 : at + 46] = bytes(4)
        at = raw.find(b"PK\x01\x02", at + 4)
    path.write_bytes(raw)


@hostile(".npz")
def forty_thousand_parts(path: Path) -> None:
    packed(path, [(f"a{index}.npy", b"") for index in range(40_000)])


@hostile(".npz")
def directory_of_exabytes(path: Path) -> None:
    packed(path, [("1.bias.npy", array())])
    raw = path.read_bytes()[:-22]
    end64 = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 2**60, 2**60, 2**60, 0)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, len(raw), 1)
    path.write_bytes(
        raw + end64 + locator + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    )


@hostile(".npz")
def two_directories(path: Path) -> None:
    packed(path, [("1.bias.npy", array())])
    path.write_bytes(path.read_bytes() * 2 + b"tail")


@hostile(".npz")
def encrypted(path: Path) -> None:
    packed(path, [("1.bias.npy", array())])
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)


@hostile(".npz")
def another_name_inside(path: Path) -> None:
    packed(path, [("1.bias.npy", array())])
    path.write_bytes(path.read_bytes().replace(b"1.bias.npy", b"1.evil.npy", 1))


@hostile(".npz")
def wrong_checksum(path: Path) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in GOOD.items()})
    raw = bytearray(path.read_bytes())
    raw[raw.index(WEIGHT.numpy().tobytes()[:16])] ^= 0xFF
    path.write_bytes(raw)


# --- pt


class Runs:
    """What a pickle does when it is loaded."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def rezipped(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    packed(path, parts, method)


def pickled(path: Path, data: bytes) -> None:
    """An archive around a pickle of one's own."""
    packed(path, [("a/data.pkl", data), ("a/byteorder", b"little"), ("a/data/0", bytes(144)), ("a/version", b"3\n")])


def rebuilt(sides: tuple, strides: tuple, offset: object = 0, numel: object = 36, key: str = "0") -> bytes:
    """The pickle of a state dict with one tensor that its storage cannot have."""

    class Reference:
        pass

    class Storage(pickle.Pickler):
        def persistent_id(self, value: object) -> tuple | None:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(value, Reference) else None

    data = io.BytesIO()
    arguments = (Reference(), offset, sides, strides, False, {})
    Storage(data, 2).dump({"1.weight": Runs(torch._utils._rebuild_tensor_v2, *arguments)})
    return data.getvalue()


PT = {
    "one_number_for_a_trillion": lambda: rebuilt((10**12,), (0,)),
    "strides_of_zero": lambda: rebuilt((3, 12), (0, 0)),
    "strides_with_holes": lambda: rebuilt((3, 6), (12, 2)),
    "strides_backwards": lambda: rebuilt((3, 12), (-12, -1)),
    "strides_of_text": lambda: rebuilt((3, 12), ("12", "1")),
    "start_behind_the_storage": lambda: rebuilt((3, 12), (12, 1), offset=30),
    "start_before_the_storage": lambda: rebuilt((3, 12), (12, 1), offset=-4),
    "start_of_text": lambda: rebuilt((3, 12), (12, 1), offset="0"),
    "storage_of_terabytes": lambda: rebuilt((10**12,), (1,), numel=10**12),
    "storage_below_zero": lambda: rebuilt((3, 12), (12, 1), numel=-36),
    "storage_that_is_not_there": lambda: rebuilt((3, 12), (12, 1), key="../../../etc/passwd"),
    "no_stop": lambda: b"\x80\x02}",
    "nothing_on_the_stack": lambda: b"\x80\x02\x85.",
    "memory_of_two_billion": lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
    "marks_without_end": lambda: b"\x80\x02" + b"(" * 3_900_000 + b".",
    "dictionaries_without_end": lambda: b"\x80\x02" + b"}" * 3_900_000 + b".",
    "number_without_end": lambda: b"\x80\x02\x8b" + struct.pack("<l", 3_000_000) + b"\xff" * 3_000_000 + b".",
    "text_beyond_the_end": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.",
    "names_nested_without_end": lambda: b"\x80\x02}K\x01\x85" + b"q\x00h\x00\x86" * 200 + b"K\x01s.",
    "itself": lambda: b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "models_in_models": lambda: b"\x80\x02" + b"}X\x05\x00\x00\x00model" * 50_000 + b"}" + b"s" * 50_000 + b".",
    "escape_that_is_none": lambda: b"\x80\x02ccollections\nOrdered\\dict\n)R.",
    "new_object": lambda: b"\x80\x02cbuiltins\nobject\n)\x81.",
    "extension": lambda: b"\x80\x02\x82\x01.",
    "text_that_is_none": lambda: b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "system": lambda: pickle.dumps({"a": Runs(os.system, f"touch {CANARY}")}, 2),
    "system_of_protocol_5": lambda: pickle.dumps({"a": Runs(os.system, f"touch {CANARY}")}, 5),
    "evaluation": lambda: pickle.dumps({"a": Runs(eval, f"open({str(CANARY)!r}, 'w')")}, 4),
    "loader_of_torch": lambda: pickle.dumps({"a": Runs(torch.load, "other.pt")}, 2),
    "attribute_of_what_is_allowed": lambda: b"\x80\x04\x8c\x0ccollections\x8c\x1cOrderedDict.__init_subclass__\x93.",
}
for each, make in PT.items():
    CORPUS[f"{each}.pt"] = lambda path, make=make: pickled(path, make())


@hostile(".pt")
def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch {CANARY}")))


@hostile(".pt")
def old_format(path: Path) -> None:
    torch.save(GOOD, path, _use_new_zipfile_serialization=False)


@hostile(".pt")
def whole_module(path: Path) -> None:
    torch.save(module(), path)


@hostile(".pt")
def script(path: Path) -> None:
    packed(path, [("a/data.pkl", b"\x80\x02}."), ("a/code/x.py", b"1"), ("a/constants.pkl", b"\x80\x02).")])


@hostile(".pt2")
def exported_program(path: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch {CANARY}")))


@hostile(".pkl")
def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch {CANARY}")))


@hostile(".pt")
def compressed(path: Path) -> None:
    torch.save({"1.weight": torch.zeros(2**26)}, path)
    rezipped(path, lambda _, data: data, zipfile.ZIP_DEFLATED)


@hostile(".pt")
def expanded(path: Path) -> None:
    torch.save({"1.weight": torch.zeros(1).expand(10**12)}, path)


@hostile(".pt")
def sparse(path: Path) -> None:
    torch.save({"1.weight": torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (10**9,))}, path)


@hostile(".pt")
def sparse_rows(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these are beta
        torch.save({"1.weight": WEIGHT.to_sparse_csr()}, path)


@hostile(".pt")
def quantized(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these will go
        torch.save({"1.weight": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)}, path)


@hostile(".pt")
def complex_numbers(path: Path) -> None:
    torch.save({"1.weight": WEIGHT.to(torch.complex64)}, path)


@hostile(".pt")
def overlapping(path: Path) -> None:
    flat = torch.arange(40.0)
    torch.save({"1.weight": flat[:36].view(3, 12), "1.bias": flat[35:38]}, path)


@hostile(".pt")
def not_by_name(path: Path) -> None:
    torch.save([1, 2, {"a": BIAS}], path)


@hostile(".pt")
def list_that_does_not_fit(path: Path) -> None:
    torch.save([BIAS, WEIGHT], path)


@hostile(".pt")
def cut_archive(path: Path) -> None:
    torch.save(GOOD, path)
    path.write_bytes(path.read_bytes()[:-300])


@hostile(".pt")
def lies_about_its_storage(path: Path) -> None:
    torch.save(GOOD, path)
    rezipped(path, lambda name, data: data[:8] if name.endswith("/data/0") else data)


@hostile(".pt")
def not_finite(path: Path) -> None:
    torch.save(GOOD | {"1.bias": torch.tensor([0.0, torch.nan, torch.inf])}, path)


# --- all of them


WATCHED = ("os.", "subprocess.", "exec", "compile", "import", "pickle.", "socket.", "ctypes.", "marshal.", "shutil.")
HARMLESS = ("os.listdir", "os.scandir", "os.fwalk", "os.walk", "os.putenv")


def resettable() -> bool:
    """Whether the high-water mark of memory can be set back."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    """The high-water mark of resident memory, bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def observe_all(paths: list[Path]) -> Iterator[dict]:
    events: list[str] = []
    watching = [False]

    def watch(event: str, arguments: tuple) -> None:
        if watching[0] and event.startswith(WATCHED) and event not in HARMLESS:
            events.append(f"{event} {arguments!r}"[:200])
        if watching[0] and event == "open" and set(str(arguments[1] or "r")) & set("wax+"):
            events.append(f"open {arguments!r}"[:200])

    sys.addaudithook(watch)
    network, expected = freeze(module(), (3, 2, 2)), expected_tensors(module())
    for path in paths:
        events.clear()
        resettable()
        before, began, error = peak(), time.process_time(), None
        watching[0] = True
        try:
            as_observation(network, read_update(path, expected))
        except BaseException as raised:  # whatever it is, the test judges it
            error = raised
        watching[0] = False
        yield {
            "name": path.name,
            "seconds": time.process_time() - began,
            "bytes": peak() - before,
            "events": list(events),
            "error": type(error).__name__,
            "message": str(error),
        }


def large_update(path: Path) -> None:
    """Forty megabytes, all of them wanted."""
    write_update(path, Update({"weight": torch.ones(10_000_000)}))


def read_large(folder: Path) -> Iterator[dict]:
    """What it costs to read a large update, in bytes of memory for each byte of the file."""
    expected = {"weight": torch.zeros(1).expand(10_000_000)}
    for path in sorted(folder.glob("large.*")):
        resettable()
        before = peak()
        update = read_update(path, expected)
        rise = peak() - before
        yield {"name": path.name, "ratio": rise / path.stat().st_size, "sum": float(update.tensors["weight"].sum())}


def main() -> None:
    global CANARY
    folder, CANARY = Path(sys.argv[1]), Path(sys.argv[2])
    for name, write in CORPUS.items():
        write(folder / name)
    good = [folder / f"good{suffix}" for suffix in (".safetensors", ".npz", ".pt")]
    safetensors.torch.save_file(GOOD, good[0], {"kind": "gradient"})
    np.savez(good[1], **{name: tensor.numpy() for name, tensor in GOOD.items()})
    torch.save(GOOD, good[2])
    list(observe_all(good))  # what is imported late is imported now
    for suffix in (".safetensors", ".npz", ".pt"):
        large_update(folder / f"large{suffix}")
    sys.stdout.write(
        json.dumps([*observe_all(good), *observe_all([folder / name for name in CORPUS]), *read_large(folder)])
    )


if __name__ == "__main__":
    main()
