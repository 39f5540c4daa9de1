"""A pickle interpreter that cannot run anything.

It knows the few operations that torch.save writes, builds only None, numbers, text, tuples, lists
and dicts, and asks two callables of its user for the rest: `find_global(module, name)` for every
global, which returns an inert `Global` or refuses, and `load_storage(persistent_id)`. A "call"
(REDUCE, BUILD) is looked up among the functions that the `Global` objects carry; no attribute of
any object is ever read or set by a pickle. Work and memory are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightsmith.tensors.messages import shown

_MOST_OPERATIONS = 20_000_000
_MOST_CONTAINERS = 4_000_000
_LONGEST_INTEGER_BYTES = 16


class PickleRefused(Exception):
    """The pickle asks for something that tensors do not need; the message says what, without the
    file's name.
    """


@dataclass(frozen=True, slots=True)
class Global:
    """The inert stand-in of a global: its full name, and what calling it means (None: it cannot be
    called).
    """

    name: str
    call: Callable[..., Any] | None = None


FindGlobal = Callable[[str, str], Global]
LoadStorage = Callable[[Any], Any]


class PickleMachine:
    """One run over one pickle in `data`, from byte `start`; `run` returns its value, `position` is
    then its end.
    """

    def __init__(
        self, data: bytes, find_global: FindGlobal, load_storage: LoadStorage, start: int = 0
    ) -> None:
        self.position = start
        self._data = data
        self._find_global = find_global
        self._load_storage = load_storage
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0
        self._stopped = False

    def run(self) -> Any:
        """Interpret until STOP; raises `PickleRefused` for anything malformed, unknown or too
        large.
        """
        handlers = self._handlers()
        data = self._data
        try:
            for _ in range(_MOST_OPERATIONS):
                code = data[self.position]
                self.position += 1
                handlers[code](self)
                if self._stopped:
                    return self._result()
        except KeyError:
            if code not in handlers:
                where = f"byte {self.position - 1}"
                raise PickleRefused(
                    f"operation {bytes([code])!r} at {where} is not one that tensors need"
                ) from None
            raise PickleRefused(f"it is malformed at byte {self.position}") from None
        except (IndexError, struct.error, ValueError, TypeError, OverflowError):
            raise PickleRefused(f"it is malformed or truncated at byte {self.position}") from None
        raise PickleRefused(f"it takes more than {_MOST_OPERATIONS} operations")

    def _handlers(self) -> dict[int, Handler]:
        return _HANDLERS

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._marked:
            raise PickleRefused("it ends with other than one value")
        return self._stack[0]

    # Reading the operations' arguments ---------------------------------------------------------------------------

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if length < 0 or end > len(self._data):
            raise PickleRefused(f"it is truncated at byte {len(self._data)}")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        end = self._data.index(b"\n", self.position)
        return self._take(end + 1 - self.position)[:-1].decode("utf-8")

    # Stack ------------------------------------------------------------------------------------------------------

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _count_container(self) -> None:
        self._containers += 1
        if self._containers > _MOST_CONTAINERS:
            raise PickleRefused(f"it builds more than {_MOST_CONTAINERS} containers")

    def _push_container(self, container: Any) -> None:
        self._count_container()
        self._stack.append(container)

    def _push_tuple(self, length: int) -> None:
        if length > len(self._stack):
            raise IndexError
        items = tuple(self._stack[len(self._stack) - length :])
        del self._stack[len(self._stack) - length :]
        self._push_container(items)

    # Operations -------------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            raise PickleRefused(f"pickle protocol {version} is not supported")

    def frame(self) -> None:
        self._take(8)

    def stop(self) -> None:
        self._stopped = True

    def mark(self) -> None:
        self._count_container()
        self._marked.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        self._stack.pop()

    def pop_mark(self) -> None:
        self._since_mark()

    def natural(self, width: int) -> None:
        self._stack.append(self._number(width))

    def integer(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def long(self, width: int) -> None:
        length = self._number(width)
        if length > _LONGEST_INTEGER_BYTES:
            raise PickleRefused(f"it holds an integer of {length} bytes")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def real(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def text(self, width: int) -> None:
        self._stack.append(self._take(self._number(width)).decode("utf-8", "surrogatepass"))

    def binary(self, width: int) -> None:
        self._stack.append(self._take(self._number(width)))

    def constant(self, value: Any) -> None:
        self._stack.append(value)

    def empty_list(self) -> None:
        self._push_container([])

    def empty_dict(self) -> None:
        self._push_container({})

    def marked_tuple(self) -> None:
        items = tuple(self._since_mark())
        self._push_container(items)

    def marked_list(self) -> None:
        items = self._since_mark()
        self._push_container(items)

    def marked_dict(self) -> None:
        items = self._since_mark()
        self._push_container({})
        self._set_items(items)

    def append(self) -> None:
        item = self._stack.pop()
        self._target(list).append(item)

    def appends(self) -> None:
        items = self._since_mark()
        self._target(list).extend(items)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def set_items(self) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._target(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are not needed, and hashing a deeply nested tuple can overflow the C stack.
            if type(key) not in (str, int, float, bool):
                raise PickleRefused(f"it uses a {type(key).__name__} as the key of a dict")
            if key in target:
                raise PickleRefused(f"the key {shown(key)} appears twice in one dict")
            target[key] = value

    def _target(self, kind: type) -> Any:
        target = self._stack[-1]
        if type(target) is not kind:
            raise PickleRefused(f"it treats a {type(target).__name__} as a {kind.__name__}")
        return target

    def remember(self, width: int) -> None:
        self._memo[self._number(width)] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, width: int) -> None:
        self._stack.append(self._memo[self._number(width)])

    def global_by_lines(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(self._find_global(module, name))

    def global_from_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleRefused("it names a global with other than text")
        self._stack.append(self._find_global(module, name))

    def persistent(self) -> None:
        self._stack.append(self._load_storage(self._stack.pop()))

    def reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Global or function.call is None or type(arguments) is not tuple:
            called = function.name if type(function) is Global else type(function).__name__
            raise PickleRefused(f"it calls {shown(called)}, which cannot be called")
        self._push_container(function.call(*arguments))

    def build(self) -> None:
        """torch sets attributes on a state dict (`_metadata`) in this way; they say nothing about
        tensors.
        """
        state = self._stack.pop()
        if type(self._stack[-1]) is not dict or type(state) is not dict:
            raise PickleRefused(f"it sets the state of a {type(self._stack[-1]).__name__}")


Handler = Callable[[PickleMachine], None]


def _with(handler: Callable[[PickleMachine, Any], None], argument: Any) -> Handler:
    return lambda machine: handler(machine, argument)


_M = PickleMachine
_HANDLERS: dict[int, Handler] = {
    ord(code): handler
    for code, handler in {
        "\x80": _M.protocol,
        "\x95": _M.frame,
        ".": _M.stop,
        "(": _M.mark,
        "0": _M.pop,
        "1": _M.pop_mark,
        "N": _with(_M.constant, None),
        "\x88": _with(_M.constant, True),
        "\x89": _with(_M.constant, False),
        "K": _with(_M.natural, 1),
        "M": _with(_M.natural, 2),
        "J": _M.integer,
        "\x8a": _with(_M.long, 1),
        "\x8b": _with(_M.long, 4),
        "G": _M.real,
        "\x8c": _with(_M.text, 1),
        "X": _with(_M.text, 4),
        "\x8d": _with(_M.text, 8),
        "C": _with(_M.binary, 1),
        "B": _with(_M.binary, 4),
        "U": _with(_M.binary, 1),
        "T": _with(_M.binary, 4),
        "]": _M.empty_list,
        "}": _M.empty_dict,
        ")": _with(_M._push_tuple, 0),
        "\x85": _with(_M._push_tuple, 1),
        "\x86": _with(_M._push_tuple, 2),
        "\x87": _with(_M._push_tuple, 3),
        "t": _M.marked_tuple,
        "l": _M.marked_list,
        "d": _M.marked_dict,
        "a": _M.append,
        "e": _M.appends,
        "s": _M.set_item,
        "u": _M.set_items,
        "q": _with(_M.remember, 1),
        "r": _with(_M.remember, 4),
        "\x94": _M.memoize,
        "h": _with(_M.recall, 1),
        "j": _with(_M.recall, 4),
        "c": _M.global_by_lines,
        "\x93": _M.global_from_stack,
        "Q": _M.persistent,
        "R": _M.reduce,
        "b": _M.build,
    }.items()
}


class ForgetfulMachine(PickleMachine):
    """A machine for files of trainers, which hold objects beside tensors: whatever is unknown is `unknown`, as inert.

    What would make, call or fill such an object is read and comes to nothing.
    """

    def __init__(
        self,
        data: bytes,
        find_global: FindGlobal,
        load_storage: LoadStorage,
        unknown: Any,
        start: int = 0,
    ) -> None:
        super().__init__(data, find_global, load_storage, start)
        self._unknown = unknown

    def _handlers(self) -> dict[int, Handler]:
        return FORGETFUL

    def reduce(self) -> None:
        """Call what is known."""
        function = self._stack[-2]
        if type(function) is Global and function.call is not None:
            super().reduce()
        else:
            del self._stack[-2:]
            self._push_container(self._unknown)

    def build(self) -> None:
        """Forget the state of an object."""
        self._stack.pop()

    def make(self) -> None:
        """An object of a class, of which nothing is kept."""
        self.reduce()

    def make_named(self) -> None:
        """The same with arguments by name."""
        self._stack.pop()
        self.reduce()

    def _set_items(self, items: list[Any]) -> None:
        if self._stack[-1] is self._unknown:
            return
        pairs = zip(items[::2], items[1::2], strict=True)
        known = [(key, value) for key, value in pairs if type(key) in (str, int, float, bool)]
        super()._set_items([part for pair in known for part in pair])

    def _target(self, kind: type) -> Any:
        return [] if self._stack[-1] is self._unknown else super()._target(kind)


FORGETFUL: dict[int, Handler] = {
    **_HANDLERS,
    ord("R"): ForgetfulMachine.reduce,  # type: ignore[dict-item]
    ord("b"): ForgetfulMachine.build,  # type: ignore[dict-item]
    0x81: ForgetfulMachine.make,  # type: ignore[dict-item]
    0x92: ForgetfulMachine.make_named,  # type: ignore[dict-item]
}
