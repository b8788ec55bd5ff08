"""An unpickler that builds descriptions: nothing is imported, nothing is called, no storage is read.

It is a stack machine over the opcodes of the standard library's own description of them (`pickletools`).
It is not a subclass of `pickle.Unpickler`: that one hashes what a file brings as keys (a deep tuple ends the
process, a tuple of doubled tuples never ends), makes a table as long as the largest memo index that a file
mentions, and reserves what a length claims. Here a pickle costs time and memory in proportion to its
length, and its length is bounded.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

from zanalysis.checkpoints.faults import FaultError, quoted
from zanalysis.checkpoints.globals import DTYPES, PLAIN, STORAGES, Built, Name, named, names_a_class
from zanalysis.checkpoints.rebuilders import REBUILDERS, StorageTag, storage_tag
from zanalysis.checkpoints.streams import Window

__all__ = ["MOST_PICKLE_BYTES", "Unpickler"]

MOST_PICKLE_BYTES = 256 << 20
_MOST_OPCODES = 3 << 20  # less than 0.5 GiB of descriptions
_MOST_MEMO = 1 << 32
_MOST_ARGUMENTS = 16  # of a rebuilder

# Those that torch never writes: the copyreg registry, out-of-band buffers, text ids, Python 2 text.
_REFUSED = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID", "STRING"}
_OPCODES = {op.code.encode("latin-1"): (op.name, op.arg) for op in pickletools.opcodes}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_INERT = {"collections.OrderedDict", "torch.Tensor", *REBUILDERS, *DTYPES}
_MARK = object()


class Unpickler:
    """Reads pickles one after the other from one stream.

    Attributes:
        placeholders: the dotted names that something inert stands for, in the order of their appearance.
        storages: the bytes of an element of every storage that the pickles name, by key.
    """

    def __init__(self, stream: Window) -> None:
        """Begin at the stream's position.

        Args:
            stream: the file, or the stretch of it, that holds the pickles.
        """
        self.placeholders: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self._stream = stream
        self._opcodes = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read one pickle, up to and with its last opcode.

        Returns:
            Numbers, texts, bytes, None, lists and tuples of them as such; tensors as `Described`; everything
            else as `Built` or `Name`.

        Raises:
            FaultError: if it is damaged, too long, or names or calls what is refused.
        """
        self._stack, self._marks, self._memo = [], [], {}
        stream = cast(IO[bytes], self._stream)
        while True:
            code = self._stream.read(1)
            name, argument = _OPCODES.get(code, ("", None))
            if name == "STOP":
                return self._pop()
            if not name or name in _REFUSED:
                what = (
                    f"the opcode {name}, which no checkpoint has" if name else "something else than a pickle"
                )
                raise FaultError(
                    f"is truncated, damaged or no checkpoint: it holds {what}; restore it from a copy."
                )
            self._opcodes += 1
            if self._opcodes > _MOST_OPCODES:
                raise FaultError(
                    "holds more than tensors: millions of Python objects; save its state_dict alone."
                )
            value = argument.reader(stream) if argument is not None else None
            self._step(name, value)

    def _step(self, name: str, value: Any) -> None:
        if name in _LITERALS:
            self._stack.append(value)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        else:
            handler = _HANDLERS.get(name)
            if handler is not None:
                handler(self, value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise FaultError("is damaged: its pickle takes more than it put down; restore it from a copy.")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise FaultError("is damaged: its pickle lacks a mark; restore it from a copy.")
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _discard(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._top())

    def _put(self, index: Any) -> None:
        if not 0 <= index < _MOST_MEMO:
            raise FaultError("is damaged: a memo index is out of range; restore it from a copy.")
        self._memo[index] = self._top()

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: Any) -> None:
        if index not in self._memo:
            raise FaultError("is damaged: its pickle refers to what is not there; restore it from a copy.")
        self._stack.append(self._memo[index])

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _short_tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _empty_dict(self, _: Any) -> None:
        self._stack.append(Built("builtins.dict"))

    def _empty_set(self, _: Any) -> None:
        self._stack.append(Built("builtins.set"))

    def _dict(self, _: Any) -> None:
        made = Built("builtins.dict")
        _set_items(made, self._since_mark())
        self._stack.append(made)

    def _frozenset(self, _: Any) -> None:
        made = Built("builtins.frozenset")
        made.items = self._since_mark()
        self._stack.append(made)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        _set_items(self._top(), [key, value])

    def _set_items(self, _: Any) -> None:
        values = self._since_mark()
        _set_items(self._top(), values)

    def _append(self, _: Any) -> None:
        value = self._pop()
        _append(self._top(), [value])

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        _append(self._top(), values)

    def _global(self, pair: str) -> None:
        parts = pair.split(" ")
        if len(parts) != 2:
            raise FaultError(f"is damaged: it names a class {quoted(pair)}; restore it from a copy.")
        self._stack.append(self._note(named(*parts)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FaultError("is damaged: the name of a class is no text; restore it from a copy.")
        self._stack.append(self._note(named(module, name)))

    def _note(self, name: Name) -> Name:
        full = name.full
        storage = full.startswith("torch.") and full.rpartition(".")[2] in STORAGES
        plain = full in PLAIN and not full.startswith("numpy.")
        if not (plain or storage or full in _INERT or full == "builtins.getattr"):
            self.placeholders[full] = None
        return name

    def _new(self, _: Any) -> None:
        args, kind = self._pop(), self._pop()
        self._stack.append(self._construct(kind, args))

    def _new_ex(self, _: Any) -> None:
        self._pop()  # keyword arguments say nothing about tensors
        self._new(None)

    def _construct(self, kind: Any, args: Any) -> Any:
        if not isinstance(kind, Name) or not isinstance(args, tuple):
            raise FaultError("is damaged: its pickle makes an object of no class; restore it from a copy.")
        if kind.full == "torch.nn.parameter.Parameter" and args:
            return _rebuilt(kind.full, args)
        return Built(kind.full, args)

    def _reduce(self, _: Any) -> None:
        args, callee = self._pop(), self._pop()
        self._stack.append(self._call(callee, args))

    def _call(self, callee: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise FaultError(
                "is damaged: its pickle calls something with no arguments; restore it from a copy."
            )
        full = callee.full if isinstance(callee, Name) else "an object that it brings along"
        if isinstance(callee, Name):
            if full in REBUILDERS:
                return _rebuilt(full, args)
            if full == "builtins.getattr" and _nested_class(args):
                return self._note(named(args[0].full, args[1]))
            if full in ("torch.Size", "torch.jit._pickle.restore_type_tag") or full.startswith(
                "torch.jit._pickle.build_"
            ):
                return args[0] if args else ()
            if full == "copyreg._reconstructor" and args and isinstance(args[0], Name):
                return Built(args[0].full, args)
            if full != "builtins.getattr" and (full in PLAIN or names_a_class(full)):
                return Built(full, args)
        hint = (
            "it is a plain pickle; save it with torch.save or as safetensors"
            if full == "torch.storage._load_from_bytes"
            else "save the weights alone, as a state_dict or as safetensors"
        )
        raise FaultError(
            f"calls {full}, and a checkpoint may call nothing but torch's own tensor rebuilders; nothing was "
            f"run, and the file is refused: {hint}."
        )

    def _instance(self, pair: str) -> None:
        values = self._since_mark()
        self._global(pair)
        self._stack.append(self._call(self._pop(), tuple(values)))

    def _object(self, _: Any) -> None:
        values = self._since_mark()
        self._stack.append(self._call(values[0] if values else None, tuple(values[1:])))

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Built):
            target.state = state

    def _persistent(self, _: Any) -> None:
        tag = storage_tag(self._pop())
        if isinstance(tag, StorageTag):
            self.storages.setdefault(tag.key, tag.dtype.itemsize)
        self._stack.append(tag)


def _rebuilt(full: str, args: tuple[Any, ...]) -> Any:
    try:
        if len(args) > _MOST_ARGUMENTS:
            raise TypeError
        return REBUILDERS[full](*args)
    except TypeError as error:  # the number of arguments
        raise FaultError(
            f"is damaged: {full} is given {len(args)} arguments; restore it from a copy."
        ) from error


def _nested_class(args: tuple[Any, ...]) -> bool:
    # How protocols before 4 write the name of a class within a class.
    return (
        len(args) == 2
        and isinstance(args[0], Name)
        and isinstance(args[1], str)
        and args[1].isidentifier()
        and names_a_class(args[0].full)
        and names_a_class(args[1])
    )


def _set_items(target: Any, values: list[Any]) -> None:
    if not isinstance(target, Built) or len(values) % 2:
        raise FaultError("is damaged: its pickle sets items of no mapping; restore it from a copy.")
    if target.pairs is None:
        target.pairs = []
    target.pairs.extend(zip(values[::2], values[1::2], strict=True))


def _append(target: Any, values: list[Any]) -> None:
    if isinstance(target, Built):
        target.items = target.items or []
        target = target.items
    if not isinstance(target, list):
        raise FaultError("is damaged: its pickle appends to no list; restore it from a copy.")
    target.extend(values)


_HANDLERS: dict[str, Callable[[Unpickler, Any], None]] = {
    "ADDITEMS": Unpickler._appends,
    "APPEND": Unpickler._append,
    "APPENDS": Unpickler._appends,
    "BINGET": Unpickler._get,
    "BINPERSID": Unpickler._persistent,
    "BINPUT": Unpickler._put,
    "BUILD": Unpickler._build,
    "DICT": Unpickler._dict,
    "DUP": Unpickler._dup,
    "EMPTY_DICT": Unpickler._empty_dict,
    "EMPTY_LIST": Unpickler._empty_list,
    "EMPTY_SET": Unpickler._empty_set,
    "FROZENSET": Unpickler._frozenset,
    "GET": Unpickler._get,
    "GLOBAL": Unpickler._global,
    "INST": Unpickler._instance,
    "LIST": Unpickler._list,
    "LONG_BINGET": Unpickler._get,
    "LONG_BINPUT": Unpickler._put,
    "MARK": Unpickler._mark,
    "MEMOIZE": Unpickler._memoize,
    "NEWOBJ": Unpickler._new,
    "NEWOBJ_EX": Unpickler._new_ex,
    "OBJ": Unpickler._object,
    "POP": Unpickler._discard,
    "POP_MARK": Unpickler._pop_mark,
    "PUT": Unpickler._put,
    "REDUCE": Unpickler._reduce,
    "SETITEM": Unpickler._set_item,
    "SETITEMS": Unpickler._set_items,
    "STACK_GLOBAL": Unpickler._stack_global,
    "TUPLE": Unpickler._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
}
