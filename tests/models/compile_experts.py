"""Compile every kernel of `few_rows` for real devices, without one; prints what did not compile, and how many did.

python tests/models/compile_experts.py ARCH ...      (80 90 100; TRITON_INTERPRET must not be set)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lynx_exp.models.expert_kernels.matmul_kernels import down_kernel, list_kernel, sum_kernel, up_kernel
from lynx_exp.models.expert_kernels.tile_sizes import Tile, tiles

SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
"""Architecture -> bytes of shared memory that a block may have."""
QWEN3, MIXTRAL, GPT_OSS = (128, 8, 2048, 768), (8, 2, 4096, 14336), (32, 4, 2880, 2880)
PLAIN = {
    "TRANSPOSED": False,
    "BIASED": False,
    "GATED": 1,
    "ACT": 0,
    "ALPHA": 1.0,
    "CLAMP": 0,
    "LIMIT": 0.0,
    "SHIFT": 0.0,
}
GATE = {"TRANSPOSED": True, "BIASED": True, "GATED": 2, "ALPHA": 1.702, "CLAMP": 1, "LIMIT": 7.0, "SHIFT": 1.0}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
Variant = tuple[Any, dict[str, Any], str, Tile | None]


def variants(arch: int) -> Iterator[Variant]:
    """(kernel, constants, type, tile): every tile of the table, type, layout and activation at least once."""
    experts = [
        (*QWEN3, 1, "bf16", {}),
        (*QWEN3, 16, "bf16", {}),
        (*QWEN3, 64, "fp16", {}),
        (*QWEN3, 16, "fp32", {}),
        (*MIXTRAL, 64, "bf16", {}),
        (*MIXTRAL, 128, "bf16", {}),
        (*MIXTRAL, 512, "bf16", {}),
        (*GPT_OSS, 16, "bf16", GATE),
        (*GPT_OSS, 512, "fp16", GATE),
        (*GPT_OSS, 4, "fp32", GATE),
        *((8, 2, 96, 80, 4, "bf16", {"ACT": act, "GATED": 0}) for act in range(15)),
        (8, 2, 96, 80, 4, "fp16", {"CLAMP": 2, "LIMIT": 7.0, "TRANSPOSED": True}),
    ]
    for E, K, D, I, rows, kind, changes in experts:  # noqa: E741
        form = PLAIN | changes
        size = BYTES[kind]
        found = tiles(rows * K / E, D, I, itemsize=size, gated=form["GATED"] > 0, shared=SHARED[arch])
        yield up_kernel, {**form, "E": E, "K": K, "D": D, "I": I, **_tile(found.up)}, kind, found.up
        if form["ACT"] == 0:
            sides = {name: form[name] for name in ("TRANSPOSED", "BIASED")}
            yield down_kernel, {**sides, "E": E, "D": D, "I": I, **_tile(found.down)}, kind, found.down
            yield sum_kernel, {"E": E, "K": K, "D": D, "BN": 1024}, kind, None
            yield list_kernel, {"E": E, "BLOCK": 4096}, kind, None


def _tile(tile: Tile) -> dict[str, int]:
    return {"BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "WIDE": False}


def compile_for(arch: int, variant: Variant) -> None:
    """RuntimeError if its code asks for more shared memory than the device has."""
    kernel, constants, kind, tile = variant
    types = {"experts_ptr": "*i64", "lists_ptr": "*i32", "num_slots": "i32", "w_e": "i32", "w_n": "i32", "w_k": "i32"}
    together = "w_n" if constants.get("TRANSPOSED") else "w_k"
    constants = constants | ({together: 1} if together in kernel.arg_names else {})
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, f"*{kind}") for n in names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, n in enumerate(names) if n not in constants and n != "num_slots"
    }
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages} if tile else {"num_warps": 4}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    if not built.asm["cubin"] or built.metadata.shared > SHARED[arch]:
        raise RuntimeError(f"{built.metadata.shared} bytes of shared memory")


def main() -> int:
    compiled, failures = 0, []
    for arch in map(int, sys.argv[1:]):
        for variant in variants(arch):
            try:
                compile_for(arch, variant)
                compiled += 1
            except Exception as error:
                failures.append(f"sm_{arch} {variant[0].__name__} {variant[2]} {variant[1]}: {error}")
    print(f"{compiled} compiled", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
