"""Which names a pickle may bring, and what stands for them. Nothing is ever imported or called.

A name is refused, even uncalled, if its module runs programs, code or files (`_DENIED`). Everything else is
only a `Name`. To *construct* something of it (the opcodes NEWOBJ, REDUCE, INST, OBJ) leaves an inert
`Built`. REDUCE, INST and OBJ can also call a function; a pickle does not say which of the two it means.
So they are refused unless the name is one of torch's tensor rebuilders, one of the plain values below, or a
class by the convention that classes begin with a capital letter.
"""

from typing import Any

import torch

from zanalysis.checkpoints.faults import FaultError, quoted

__all__ = ["DTYPES", "PLAIN", "STORAGES", "Built", "Name", "named", "names_a_class"]

_DENIED = frozenset([
    "_ctypes", "_io", "_operator", "_pickle", "_posixsubprocess", "_socket", "_thread", "asyncio",
    "atexit", "bdb", "builtins", "cProfile", "cffi", "cloudpickle", "code", "codecs", "codeop",
    "commands", "concurrent", "copyreg", "ctypes", "dill", "distutils", "doctest", "ensurepip",
    "fcntl", "ftplib", "functools", "gc", "http", "idlelib", "imp", "importlib", "inspect", "io",
    "joblib", "linecache", "marshal", "mmap", "multiprocessing", "nt", "ntpath", "operator", "os",
    "pdb", "pickle", "pickletools", "pip", "pkgutil", "posix", "posixpath", "profile", "pty",
    "pydoc", "requests", "resource", "runpy", "setuptools", "shelve", "shutil", "signal", "site",
    "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "tarfile",
    "telnetlib", "tempfile", "test", "this", "threading", "timeit", "trace", "tracemalloc", "types",
    "unittest", "urllib", "venv", "webbrowser", "xmlrpc", "zipapp", "zipfile", "zipimport",
])  # fmt: skip

# What pickles of numbers, dates, paths and collections call, and what it says of them: nothing but values.
PLAIN = frozenset([
    "_codecs.encode", "array._array_reconstructor", "array.array", "builtins.Ellipsis",
    "builtins.NotImplemented", "builtins.bool", "builtins.bytearray", "builtins.bytes",
    "builtins.complex", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int",
    "builtins.list", "builtins.object", "builtins.range", "builtins.set", "builtins.slice",
    "builtins.str", "builtins.tuple", "collections.Counter", "collections.OrderedDict",
    "collections.defaultdict", "collections.deque", "copyreg._reconstructor", "datetime.date",
    "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "itertools.count", "types.SimpleNamespace", "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer", "numpy.dtype", "numpy.ndarray",
    "numpy.random._pickle.__bit_generator_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__randomstate_ctor", "torch.Size", "torch.device",
    "torch.serialization._get_layout", "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist", "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist", "torch.jit._pickle.restore_type_tag",
])  # fmt: skip

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}  # since Python 2

DTYPES: dict[str, torch.dtype] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}

STORAGES: dict[str, torch.dtype] = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt2x4Storage": torch.uint8,
    "QUInt4x2Storage": torch.uint8,
    "QUInt8Storage": torch.quint8,
    "ShortStorage": torch.int16,
    "TypedStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
}


class Name:
    """A dotted name that a pickle brings. Nothing of that name is ever looked up."""

    __slots__ = ("full",)

    def __init__(self, full: str) -> None:
        self.full = full


class Built:
    """What stands for an object of a pickle: what the file says of it, and no behaviour.

    Also what stands for a dict or a set: nothing that a file brings is ever hashed or compared, so that no
    nesting and no collision of its keys can cost more than it is long.

    Attributes:
        kind: the dotted name of its class.
        args: what it was constructed from.
        pairs: the items set in it, in order.
        items: what was appended to it.
        state: what it was given last by BUILD.
    """

    __slots__ = ("args", "items", "kind", "pairs", "state")

    def __init__(self, kind: str, args: Any = ()) -> None:
        self.kind = kind
        self.args = args
        self.pairs: list[tuple[Any, Any]] | None = None
        self.items: list[Any] | None = None
        self.state: Any = None


def named(module: str, name: str) -> Name:
    """Take note of a name that a pickle asks for.

    Args:
        module: dotted.
        name: dotted.

    Returns:
        The name, inert.

    Raises:
        FaultError: if it is none, or one of those that run something.
    """
    full = f"{_RENAMED.get(module, module)}.{name}"
    if len(full) > 500 or not all(part.isidentifier() for part in full.split(".")):
        raise FaultError(f"is damaged: it names a class {quoted(full)}; restore it from a copy.")
    through = {full.split(".")[0], *name.split(".")[:-1]}  # "torch" and "os.system" lead to os as well
    if full not in PLAIN and full != "builtins.getattr" and through & _DENIED:
        raise FaultError(
            f"names {quoted(full)[1:-1]}, which can run a program; nothing was run, and the file is refused. "
            "Get the weights as safetensors from somebody you trust."
        )
    return Name(full)


def names_a_class(full: str) -> bool:
    """Tell whether a dotted name is one of a class, by the capital letter.

    Args:
        full: the dotted name.

    Returns:
        Whether it is.

    Example:
        >>> names_a_class("argparse.Namespace"), names_a_class("torch.load")
        (True, False)
    """
    return full.rpartition(".")[2].lstrip("_")[:1].isupper()
