"""What a compiled program will do, read from XLA's own text of it: kernels, products, loops, aliases, memory traffic.

No run and no device is needed, so the figures are exact, and equal on every machine: a test can hold a training step
to them. What they cannot tell is time.

    report = program_report(jax.jit(step).lower(*shapes).compile())
    assert report.num_kernels < 1_000
    assert report.products_of("f32") == []
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

from jax_mtlser.training.hlo_text import Instruction, Program, read_program

__all__ = [
    "Kernel",
    "Loop",
    "Product",
    "ProgramReport",
    "lowered_report",
    "part_of",
    "program_report",
]

# What describes data or order; everything else that is not inside a fusion is launched.
_FREE = frozenset(
    ("add-dependency", "after-all", "bitcast", "constant", "domain", "get-tuple-element", "opt-barrier", "parameter",
     "partition-id", "replica-id", "tuple")
)  # fmt: skip
_FREE_ENDINGS = ("-done", "-update")  # second halves of asynchronous operations
_FREE_TARGETS = frozenset(("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer"))
_FUSIONS = frozenset(("fusion", "fusion-start"))
_HOST_OPCODES = frozenset(("infeed", "outfeed", "send", "recv"))
_PARTIAL_READS = frozenset(("slice", "dynamic-slice", "gather"))

# Names on an operation's path, the innermost question first: keys are drawn inside of everything else.
_PARTS = {
    "_threefry_fold_in": "random keys",
    "_threefry_split": "random keys",
    "optimizer": "optimizer",
    "ctc": "CTC",
    "feature_encoder": "convolutions",
    "feature_projection": "feature projection",
    "positional_conv": "positional convolution",
    "attention": "attention",
    "attention_norm": "layer norms",
    "feed_forward_norm": "layer norms",
    "feed_forward": "feed-forward",
    "transformer": "rest of the transformer",
    "encoder": "rest of the encoder",
    "MultitaskModel.read": "heads",
}

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIBRARY_PRODUCT = re.compile("gemm|matmul", re.IGNORECASE)
_LIBRARY_CONVOLUTION = re.compile("conv(?!ert)", re.IGNORECASE)
_SCRATCH = re.compile(r", [su]8\[(\d+)\]")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Something that is launched.

    Attributes:
        name, opcode: of its instruction.
        op_name: where it comes from: of a fusion around a library's call, the call; of another one without a name, where
            most of it does; otherwise the loop.
        target: of a custom call; of a fusion the first product or convolution inside, where there is one.
        launches: how often in one run of the program; in a loop, once per iteration.
        in_loop: whether it is in one.
        bytes_each: read and written by one launch: operands (only the part of them that is used, where the kernel
            begins with a slice or a gather) and results. Caches are not considered.
    """

    name: str
    opcode: str
    op_name: str
    target: str
    launches: int
    in_loop: bool
    bytes_each: int

    @property
    def bytes_total(self) -> int:
        """Of all launches."""
        return self.bytes_each * self.launches


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product (``dot``), wherever it is computed, or one that went to a library.

    Attributes:
        left, right: element types of the operands as they are multiplied.
        op_name: where it comes from.
        launches: how often in one run of the program.
    """

    left: str
    right: str
    op_name: str
    launches: int

    @property
    def types(self) -> str:
        """Such as ``bf16xbf16``."""
        return f"{self.left}x{self.right}"


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop that runs on the device.

    Attributes:
        op_name: where it comes from.
        trips: iterations, those of enclosing loops multiplied in; None when XLA does not know the number.
        kernels_per_trip: launched by each iteration, kernels of loops inside left out.
    """

    op_name: str
    trips: int | None
    kernels_per_trip: int


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """See the module's text.

    Attributes:
        kernels: in the order in which they run.
        products: matrix products.
        convolutions: op names of convolutions, as kernels of their own or as library calls.
        loops: on the device.
        aliases: entry parameters whose memory a result takes over.
        host_calls: op names of what leaves the device in the middle of the program.
        dynamic_shapes: names of instructions whose shape is not known at compilation.
        argument_bytes, output_bytes, alias_bytes, temporary_bytes: XLA's memory statistics, per device; 0 when the
            backend has none.
    """

    kernels: list[Kernel]
    products: list[Product]
    convolutions: list[str]
    loops: list[Loop]
    aliases: frozenset[int]
    host_calls: list[str]
    dynamic_shapes: list[str]
    argument_bytes: int = 0
    output_bytes: int = 0
    alias_bytes: int = 0
    temporary_bytes: int = 0

    @property
    def num_kernels(self) -> int:
        """Launches in one run, those in loops included."""
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def num_loop_kernels(self) -> int:
        """Launches in loops."""
        return sum(kernel.launches for kernel in self.kernels if kernel.in_loop)

    @property
    def bytes_moved(self) -> int:
        """Read and written by all kernels."""
        return sum(kernel.bytes_total for kernel in self.kernels)

    def products_of(self, element_type: str) -> list[Product]:
        """Products with an operand of this type."""
        return [product for product in self.products if element_type in (product.left, product.right)]

    def product_types(self) -> dict[str, int]:
        """Number of products by operand types, such as ``{"bf16xbf16": 273}``."""
        counts: collections.Counter[str] = collections.Counter()
        for product in self.products:
            counts[product.types] += product.launches
        return dict(counts.most_common())

    @classmethod
    def of(cls, program: Program) -> Self:
        """Everything but the memory statistics."""
        walk = _Walk(program)
        walk.visit(program.entry, 1)
        return cls(
            walk.kernels, walk.products, walk.convolutions, walk.loops, program.aliases, walk.host_calls, walk.dynamic
        )


def program_report(compiled: Any) -> ProgramReport:
    """The report of what ``jax.jit(...).lower(...).compile()`` returns."""
    report, memory = ProgramReport.of(read_program(compiled.as_text())), compiled.memory_analysis()
    if memory is None:
        return report
    return dataclasses.replace(
        report,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
    )


def lowered_report(lowered: Any) -> ProgramReport:
    """The report of what ``jax.jit(...).lower(...)`` returns: what XLA is asked for, before it changes anything.

    Types of products are here as the model wrote them, on every backend. Nothing is fused yet, so kernels and bytes
    mean little, and the trips of loops are not known.
    """
    return ProgramReport.of(read_program(lowered.compiler_ir("hlo").get_hlo_module().to_string()))


def part_of(op_name: str) -> str:
    """The part of the training step that an operation belongs to.

    Named after the modules on its path and after ``jax.named_scope``s; what has neither is a loss where it is
    differentiated, and the optimizer where it is not.
    """
    path = re.findall(r"[\w.]+", op_name)
    for name, part in _PARTS.items():
        if name in path:
            return part
    if any(word.endswith("_head") for word in path):
        return "heads"
    return "losses and input" if "jvp" in path else "optimizer"


class _Walk:
    """Goes through a program once, in the order of its execution, and collects."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kernels: list[Kernel] = []
        self.products: list[Product] = []
        self.convolutions: list[str] = []
        self.loops: list[Loop] = []
        self.host_calls: list[str] = []
        self.dynamic: list[str] = []

    def visit(self, computation: str, launches: int, loop: Instruction | None = None) -> None:
        """Collect from everything that one run of a computation launches, ``launches`` times."""
        instructions = self.program.computations[computation]
        for instruction in instructions.values():
            if "<=" in instruction.result:
                self.dynamic.append(instruction.name)
            match instruction.opcode:
                case "while":
                    self._loop(instruction, launches)
                case "call" | "conditional" | "async-start":
                    for called in instruction.called:  # of a conditional every branch: an upper bound
                        self.visit(called, launches, loop)
                case _ if _is_launched(instruction):
                    self._kernel(instructions, instruction, launches, loop)

    def _loop(self, instruction: Instruction, launches: int) -> None:
        found = _TRIPS.search(instruction.rest)
        trips = int(found.group(1)) if found else None
        runs = launches * (trips or 1)
        place, inner = len(self.kernels), len(self.loops)
        (body,) = instruction.called
        self.visit(body, runs, instruction)
        nested = sum(loop.kernels_per_trip * (loop.trips or runs) for loop in self.loops[inner:])
        own = sum(kernel.launches for kernel in self.kernels[place:]) - nested
        self.loops.append(Loop(instruction.op_name, None if trips is None else runs, own // max(runs, 1)))

    def _kernel(
        self,
        computation: Mapping[str, Instruction],
        instruction: Instruction,
        launches: int,
        loop: Instruction | None,
    ) -> None:
        library, origin = "", instruction.op_name
        if not origin:
            parts = [part for _, part in self._parts(computation, instruction) if part.op_name]
            # A library call that reads its operand out of a larger array is fused with the slice, and is the work of both.
            calls = [part for part in parts if part.opcode == "custom-call"]
            names = collections.Counter(part.op_name for part in calls or parts)
            origin = names.most_common(1)[0][0] if names else loop.op_name if loop else ""
        for holder, part in self._parts(computation, instruction):
            op_name = part.op_name or origin
            if part.opcode == "dot" or (part.target and _LIBRARY_PRODUCT.search(part.target)):
                left, right = (holder[name].element_type for name in part.operands[:2])
                self.products.append(Product(left, right, op_name, launches))
                library = library or part.target or "dot"
            elif part.opcode == "convolution" or (part.target and _LIBRARY_CONVOLUTION.search(part.target)):
                self.convolutions += [op_name] * launches
                library = library or part.target or "convolution"
            elif part.opcode in _HOST_OPCODES or "callback" in part.target.lower():
                self.host_calls.append(op_name or part.target)
        self.kernels.append(
            Kernel(
                name=instruction.name,
                opcode=instruction.opcode,
                op_name=origin,
                target=instruction.target or library,
                launches=launches,
                in_loop=loop is not None,
                bytes_each=self._bytes(computation, instruction),
            )
        )

    def _parts(
        self, computation: Mapping[str, Instruction], instruction: Instruction
    ) -> Iterator[tuple[Mapping[str, Instruction], Instruction]]:
        """The instruction and all that is fused into it, each with the computation that holds it."""
        yield computation, instruction
        if instruction.opcode in _FUSIONS:
            for called in instruction.called:
                fused = self.program.computations[called]
                for part in fused.values():
                    yield from self._parts(fused, part)

    def _bytes(self, computation: Mapping[str, Instruction], instruction: Instruction) -> int:
        read = [computation[name].num_bytes for name in instruction.operands]
        written = instruction.num_bytes
        match instruction.opcode:
            case opcode if opcode in _PARTIAL_READS:
                read[0] = written
            case "custom-call":
                written -= _scratch(computation, instruction)
            case "dynamic-update-slice":
                read[0], written = 0, read[1]
            case opcode if opcode in _FUSIONS:
                fused = self.program.computations[instruction.called[0]]
                written = sum(part.num_bytes - _scratch(fused, part) for part in fused.values() if part.is_root)
                for number, used, replaced in _partly_used(fused):
                    read[number] = min(used, read[number])
                    written -= replaced
        return sum(read) + max(written, 0)


def _scratch(computation: Mapping[str, Instruction], instruction: Instruction) -> int:
    """Bytes of a library's own among its results, of which at most some are touched."""
    match instruction.opcode:
        case "custom-call":
            return sum(int(size) for size in _SCRATCH.findall(instruction.result))
        case "tuple":
            return sum(_scratch(computation, computation[name]) for name in instruction.operands)
        case "get-tuple-element" if computation[instruction.operands[0]].opcode == "custom-call":
            return sum(int(size) for size in _SCRATCH.findall(f", {instruction.result}"))
    return 0


def _partly_used(fused: Mapping[str, Instruction]) -> Iterator[tuple[int, int, int]]:
    """Parameters of a fusion of which it touches only a part: a slice, a gather, a slice that is updated in place.

    Yields:
        Number of the parameter, bytes read of it, bytes of it that stand in the result untouched.
    """
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for part in fused.values():
        for operand in part.operands:
            users[operand].append(part)

    def behind_bitcasts(part: Instruction) -> Iterator[Instruction]:
        for user in users[part.name]:
            if user.opcode == "bitcast":
                yield from behind_bitcasts(user)
            else:
                yield user

    for parameter in fused.values():
        if parameter.opcode != "parameter":
            continue
        number, using = int(parameter.arguments), list(behind_bitcasts(parameter))
        if using and all(user.opcode in _PARTIAL_READS for user in using):
            yield number, sum(user.num_bytes for user in using), 0
        elif using and all(user.opcode == "dynamic-update-slice" for user in using):
            updated = sum(fused[user.operands[1]].num_bytes for user in using)
            yield number, 0, parameter.num_bytes - updated


def _is_launched(instruction: Instruction) -> bool:
    opcode = instruction.opcode
    return not (opcode in _FREE or opcode.endswith(_FREE_ENDINGS) or instruction.target in _FREE_TARGETS)
