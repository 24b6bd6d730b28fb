"""The few machine operations that Python has no words for, as functions that kernels can call.

Each becomes one instruction or a handful, for whatever processor the compiler finds. `read_word` and `write_word` take
eight neighbouring bytes of an array at once, at any place:

    array       …  h  e  l  l  o     w  o  r  l  d  …
                   └──────── at = 3 ──────┘
    read_word   0x6f77206f6c6c6568        the first byte is the lowest: "little-endian"

and `classify` looks at 64 bytes at once, and returns masks: 64-bit numbers whose bit i describes byte i.

    bytes       I   a m   4 2 .
    letter      1 0 1 1 0 0 0 0  …        (bit 0 on the left)
    number      0 0 0 0 0 1 1 0  …
    white       0 1 0 0 1 0 0 0  …

They do not check bounds: the caller must ensure that the bytes exist. `prefetch` changes no result, only how long it
takes.
"""

from typing import Any

import llvmlite.ir as ir
from numba import extending, types

intrinsic: Any = extending.intrinsic  # an intrinsic is called without its first parameter; no type checker knows

BLOCK = 64  # bytes that `classify` looks at, because a mask has 64 bits

_BIT, _BYTE, _INT, _WORD = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_BYTE, BLOCK)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, target: ir.Type) -> Any:
    """Return the address of item `at` of the array, to be read as a `target`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), target.as_pointer())


@intrinsic
def read_word(typingctx: Any, array: Any, at: Any) -> Any:
    """Return the eight bytes at item `at` of `array` as a number, the first byte lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.load(_pointer(context, builder, signature.args[0], arguments[0], arguments[1], _WORD))
        word.align = 1
        return word

    return types.uint64(array, types.int64), generate


@intrinsic
def write_word(typingctx: Any, array: Any, at: Any, word: Any) -> Any:
    """Write the eight bytes of `word` at item `at` of `array`, the lowest byte first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, word = arguments
        store = builder.store(word, _pointer(context, builder, signature.args[0], array, at, _WORD))
        store.align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@intrinsic
def prefetch(typingctx: Any, array: Any, at: Any) -> Any:
    """Prefetch the cache line of item `at` of `array`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], _BYTE)
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE.as_pointer()], _prefetch_type)
        to_read, keep_in_all_caches, data = (ir.Constant(_INT, number) for number in (0, 3, 1))
        builder.call(function, [address, to_read, keep_in_all_caches, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


_prefetch_type = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])


@intrinsic
def lowest_bit(typingctx: Any, mask: Any) -> Any:
    """Return the place of the lowest bit that is set in `mask`, counted from 0; 64 if none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_BIT, 0))

    return types.int64(types.uint64), generate


@intrinsic
def classify(typingctx: Any, text: Any, at: Any) -> Any:
    """Return masks over the 64 bytes from item `at` of `text`.

    They are: ASCII letters, ASCII digits, ASCII white space, spaces, apostrophes, and bytes that are not ASCII.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = builder.load(_pointer(context, builder, signature.args[0], arguments[0], arguments[1], _BYTES))
        block.align = 1

        def all_equal(character: str) -> Any:
            return ir.Constant(_BYTES, [ir.Constant(_BYTE, ord(character))] * BLOCK)

        def between(bytes_: Any, first: str, last: str) -> Any:
            # One comparison checks both bounds: values below `first` wrap around to a large number.
            width = all_equal(chr(ord(last) - ord(first)))
            return builder.icmp_unsigned("<=", builder.sub(bytes_, all_equal(first)), width)

        def equal(character: str) -> Any:
            return builder.icmp_unsigned("==", block, all_equal(character))

        in_lower_case = builder.or_(block, all_equal("\x20"))  # "A" | 0x20 is "a"
        masks = [
            between(in_lower_case, "a", "z"),
            between(block, "0", "9"),
            builder.or_(between(block, "\t", "\r"), equal(" ")),
            equal(" "),
            equal("'"),
            builder.icmp_signed("<", block, all_equal("\0")),
        ]
        return context.make_tuple(builder, signature.return_type, [builder.bitcast(mask, _WORD) for mask in masks])

    return types.UniTuple(types.uint64, 6)(text, types.int64), generate


@intrinsic
def equal_bytes(typingctx: Any, text: Any, at: Any, byte: Any) -> Any:
    """Return a mask over the 64 bytes from item `at` of `text`: those that are equal to `byte`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        text, at, byte = arguments
        block = builder.load(_pointer(context, builder, signature.args[0], text, at, _BYTES))
        block.align = 1
        undefined = ir.Constant(_BYTES, ir.Undefined)
        first_of_all = ir.Constant(ir.VectorType(_INT, BLOCK), None)  # 64 zeros: each place takes the byte from place 0
        copies = builder.shuffle_vector(
            builder.insert_element(undefined, byte, ir.Constant(_INT, 0)), undefined, first_of_all
        )
        return builder.bitcast(builder.icmp_unsigned("==", block, copies), _WORD)

    return types.uint64(text, types.int64, types.uint8), generate
