"""XLA's text of a program, read: computations, their instructions, and what they call."""

import dataclasses
import math
import re
from collections.abc import Mapping

__all__ = ["Instruction", "Program", "read_program"]

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%?([A-Za-z_][\w.\-]*)\s*(?:,|$)")  # with or without its type in front
_CALLED = re.compile(r"\b(?:calls|to_apply|body|called_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_BRANCH = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{[\d, ]*\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: unique in its computation.
        opcode: such as ``fusion``.
        result: type of the result as XLA writes it, such as ``bf16[8,224,768]{2,1,0}`` or a tuple of such.
        operands: names of instructions of the same computation.
        arguments: what stands in their place, as XLA writes it.
        rest: what follows the operands, metadata among it.
        is_root: its result is the computation's.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    arguments: str
    rest: str
    is_root: bool = False

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from: modules and primitives, as JAX names them."""
        found = _OP_NAME.search(self.rest)
        return found.group(1).split(";")[0] if found else ""

    @property
    def target(self) -> str:
        """Name of the library function that a custom call calls."""
        found = _TARGET.search(self.rest)
        return found.group(1) if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs (of a loop: the body)."""
        branches = [name for found in _BRANCHES.findall(self.rest) for name in re.findall(r"[\w.\-]+", found)]
        return (*_CALLED.findall(self.rest), *branches, *_BRANCH.findall(self.rest))

    @property
    def element_type(self) -> str:
        """Element type of the (first) result."""
        found = _ARRAY.search(self.result)
        return found.group(1) if found else ""

    @property
    def num_bytes(self) -> int:
        """Size of the result."""
        return sum(
            math.prod(int(size) for size in sizes.split(",") if size) * _bits(kind) // 8
            for kind, sizes in _ARRAY.findall(self.result)
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations of a program by name, each with its instructions by name.

    Attributes:
        computations: instructions in the order in which they run.
        entry: where it starts.
        aliases: entry parameters whose memory a result takes over.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    aliases: frozenset[int]


def read_program(text: str) -> Program:
    """Read XLA's text of an optimised module.

    Raises:
        ValueError: no entry computation in it.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current, aliases = None, None, frozenset[int]()
    for line in text.splitlines():
        if line.startswith("HloModule"):
            header = line.partition("input_output_alias={")[2].partition("entry_computation_layout")[0]
            aliases = frozenset(int(number) for number in _ALIAS.findall(header))
        elif not line.startswith(" "):
            found = _COMPUTATION.match(line)
            current = computations.setdefault(found.group(2), {}) if found else None
            if found and found.group(1):
                entry = found.group(2)
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found.group(2), found.group(3), bool(found.group(1)))
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no text of an XLA module: it has no ENTRY computation")
    return Program(computations, entry, aliases)


def _instruction(name: str, definition: str, is_root: bool) -> Instruction:
    definition = re.sub(r"/\*.*?\*/", "", definition)
    result, definition = _balanced(definition) if definition.startswith("(") else definition.split(" ", 1)
    opcode, _, definition = definition.strip().partition("(")
    arguments, rest = _balanced("(" + definition)
    return Instruction(name, opcode, result, tuple(_OPERAND.findall(arguments[1:-1])), arguments[1:-1], rest, is_root)


def _balanced(text: str) -> tuple[str, str]:
    """``text`` split behind the parenthesis that closes its first character."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _bits(element_type: str) -> int:
    if element_type in _BITS:
        return _BITS[element_type]
    digits = re.search(r"\d+", element_type)  # f32, s8, u4, c64, f8e4m3fn
    return int(digits.group()) if digits else 0
