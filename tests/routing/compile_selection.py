"""Compile every selection kernel for real devices, without one; prints what did not compile, and how many did.

python tests/routing/compile_selection.py ARCH ...      (80 90 100; TRITON_INTERPRET must not be set)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lynx_exp.routing.backends.triton.kernels.launches import lane_kernel, rows_kernel
from lynx_exp.routing.backends.triton.kernels.protecting import protect_kernel
from lynx_exp.routing.backends.triton.kernels.rounds import round_kernel, settle_kernel, start_kernel
from lynx_exp.routing.backends.triton.kernels.route import warps
from lynx_exp.routing.backends.triton.kernels.router_rules import route_kernel
from lynx_exp.routing.backends.triton.kernels.row_programs import drop_kernel, reassign_kernel, replace_kernel
from lynx_exp.routing.backends.triton.kernels.spread import lane_block_kernel
from lynx_exp.routing.backends.triton.kernels.tile_parts import sum_kernel, vote_kernel
from lynx_exp.routing.backends.triton.kernels.weighing import weigh_kernel

TYPES = {
    "experts_ptr": "*i64",
    "lane_ptr": "*i64",
    "key_ptr": "*i64",
    "row_ptr": "*i64",
    "sums_ptr": "*i64",
    "total_ptr": "*i64",
    "first_ptr": "*fp64",
    "own_ptr": "*i64",
    "out_experts_ptr": "*i64",
    "live_ptr": "*i1",
    "touched_ptr": "*i1",
    "mask_ptr": "*i1",
    "protected_ptr": "*i1",
    "kept_ptr": "*i8",
    "numbers_ptr": "*fp64",
    "state_ptr": "*fp64",
    "weights_ptr": "*bf16",
    "own_weights_ptr": "*bf16",
    "out_weights_ptr": "*bf16",
    "scaling": "fp32",
}
"""Others that end in `_ptr` are fp32, and the rest i32."""
ODD = {"E": 60, "K": 6, "BT": 16, "BE": 64, "BK": 8}
WIDE = {"E": 512, "K": 8, "BT": 4, "BE": 512, "BK": 8}
MIXTRAL = {"E": 8, "K": 2, "BT": 16, "BE": 8, "BK": 2}
QWEN3 = {"E": 128, "K": 8, "BT": 2, "BE": 128, "BK": 8}
WARPS = {8: 1, 60: 4, 128: 1, 512: 4}
"""Of a program, by E: as `launch_sizes` has them, and more."""
ROUTERS = [
    {"H": 1, "TOP_GROUPS": 1, "S": 60, "K": 6, "BH": 1, "BS": 64, "BK": 8},
    {"H": 8, "TOP_GROUPS": 3, "S": 20, "K": 6, "BH": 8, "BS": 32, "BK": 8},
    {"H": 1, "TOP_GROUPS": 1, "S": 512, "K": 22, "BH": 1, "BS": 512, "BK": 32},
]
MOST_SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
"""Architecture -> bytes of shared memory that a block may have."""


def variants() -> Iterator[tuple[Any, dict[str, Any]]]:
    """(kernel, constants): every policy's form at least once."""
    for size in (ODD, WIDE, MIXTRAL, QWEN3):
        narrow = {name: value for name, value in size.items() if name != "BK"}
        for scaled in (True, False):
            weighs = size | {"RENORMALIZE": not scaled, "SCALED": scaled}
            yield rows_kernel, weighs
            for masked in (True, False):
                yield replace_kernel, weighs | {"MASKED": masked}
            for own in (True, False):
                yield reassign_kernel, weighs | {"OWN": own}
            yield protect_kernel, weighs_rows(size) | {"RENORMALIZE": not scaled, "SCALED": scaled}
            for count in (-1, 0, 8, 60):
                yield weigh_kernel, weighs_rows(size) | {"COUNT": count, "RENORMALIZE": not scaled, "SCALED": scaled}
            for drop in range(4):
                yield drop_kernel, size | {"DROP": drop, "REWEIGHS": not scaled, "SCALED": scaled}
        for keep, variant in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (4, 0), (4, 1), (5, 0), (5, 1)]:
            how = narrow | {"KEEP": keep, "VARIANT": variant}
            yield sum_kernel, how
            for spread in (True, False):
                last = how | {
                    "SPREAD": spread,
                    "SUBSTITUTES": keep == 2 and variant == 0,
                    "SLOTS": 7,
                    "W": 8,
                    "BW": 8,
                    "BN": 8,
                }
                odd = keep in (2, 4)
                last |= {"OWN_FIRST": odd, "RANKED": odd, "RENORMALIZE": spread, "SCALED": not spread}
                yield lane_block_kernel, last
        for utility in (0, 1, 4, -1):
            for rows, every in ((16, 16), (16, 256), (64, 64)):
                if size is ODD or (utility == 4 and rows == 16):
                    yield lane_kernel, size | {"VARIANT": utility, "BT": rows, "BALL": every, "BLOOP": size["BT"]}
        for bins in (0, 1):
            yield vote_kernel, narrow | {"VARIANT": bins, "BN": 8}
        yield start_kernel, {name: size[name] for name in ("E", "K", "BT")}
        for utility in (0, 1, 4, -1):
            for bids, begins in [(False, True), (True, True), (False, False), (True, False)]:
                if size is ODD or utility == 4:
                    how = {"BIDS": bids, "FIRST_ROUND": begins, "UTILITY": utility, "HALVES": utility == 1}
                    yield round_kernel, narrow | how
        for halves in (True, False):
            last = {"HALVES": halves, "RENORMALIZE": halves, "SCALED": not halves, "BW": 8}
            yield settle_kernel, narrow | last
    for number, shape in enumerate(ROUTERS):
        for score in range(3):
            for bias in range(3):
                if number < 2 or bias == score:
                    rest = {"SCALED": bias == 2, "RENORMALIZE": score != 2, "CHOOSES": bias != 0 or score == 0}
                    yield route_kernel, shape | rest | {"SCORE": score, "BIAS": bias, "TOP2": bias == 1}


def weighs_rows(size: dict[str, int]) -> dict[str, int]:
    """Tile sizes of the kernels that weigh or protect what is left, with a tile of slots and none of the router's
    top-K."""
    return {"E": size["E"], "K": size["K"], "W": 7, "BT": size["BT"], "BE": size["BE"], "BW": 8}


def compile_for(arch: int, kernel: Any, constants: dict[str, Any]) -> None:
    """RuntimeError if its code asks for more shared memory than the device has."""
    names = kernel.arg_names
    default = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names} | TYPES
    signature = {name: "constexpr" if name in constants else default[name] for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    num_warps = warps(constants["BH"] * constants["BS"]) if kernel is route_kernel else WARPS[constants.get("E", 8)]
    num_warps = 16 if kernel is lane_kernel else num_warps
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    if not built.asm["cubin"] or built.metadata.shared > MOST_SHARED[arch]:
        raise RuntimeError(f"{built.metadata.shared} bytes of shared memory")


def main() -> int:
    compiled, failures = 0, []
    for arch in map(int, sys.argv[1:]):
        for kernel, constants in variants():
            try:
                compile_for(arch, kernel, constants)
                compiled += 1
            except Exception as error:
                failures.append(f"sm_{arch} {kernel.__name__} {constants}: {error}")
    print(f"{compiled} compiled", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
