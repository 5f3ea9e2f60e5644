"""Vector instructions of the probe-shrink mask's two inner loops, for a few points of a row.

With d = start, start + 1, ..., both take t = a0 + a1 d + a2 d^2, cut to 0..1, and S = t^2 (3 - 2 t).
"""
from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..structure_factors.vector_code import LANES, _Builder

SUMS = 6


class _Step:
    """t and 1 - S of one block of points."""

    def __init__(self, builder, dtype, numbers):
        self.v = _Builder(None, builder, dtype)
        self.a0, self.a1, self.a2, self.start = (self.v.fill(x) for x in numbers)

    def at(self, block):
        v = self.v
        shift = v.fill(v.b.sitofp(v.b.mul(block, ir.Constant(ir.IntType(64), LANES)), v.scalar))
        d = v.add(v.add(v.lanes(), shift), self.start)
        t = v.add(self.a0, v.mul(d, v.add(self.a1, v.mul(d, self.a2))))
        one, zero = v.constant(1), v.constant(0)
        t = v.b.select(v.b.fcmp_ordered("<", t, one), t, one)
        t = v.b.select(v.b.fcmp_ordered(">", t, zero), t, zero)
        step = v.mul(v.mul(t, t), v.add(v.constant(3), v.mul(v.constant(-2), t)))
        return d, t, v.b.fsub(one, step)

    def factor(self, free, share):
        return self.v.b.fsub(self.v.constant(1), self.v.b.fmul(share, free))


@intrinsic
def multiply_blocks(typing, field, index, n_blocks, a0, a1, a2, start, share):
    """field[index + i] *= 1 - share (1 - S), for 8 n_blocks values of i."""
    dtype = field.dtype
    signature = types.void(field, types.int64, types.int64, *[dtype] * 5)

    def generate(context, builder, signature, args):
        v = _Builder(context, builder, dtype)
        data = v.data(signature.args[0], args[0])
        step, share = _Step(builder, dtype, args[3:7]), v.fill(args[7])
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, ir.Constant(ir.IntType(64), LANES)))
            free = step.at(loop.index)[2]
            v.store(builder.fmul(v.load(data, at), step.factor(free, share)), data, at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def attribute_blocks(typing, field, index, n_blocks, a0, a1, a2, start, share, d0, d1, sums):
    """Add eight-lane sums of slope times 1, d0, d1, d and t - 1/2, and of value (1 - S), to ``sums``.

    value = field[index + i] / (1 - share (1 - S)), slope = value t (1 - t).
    """
    dtype = field.dtype
    signature = types.void(field, types.int64, types.int64, *[dtype] * 7, sums)

    def generate(context, builder, signature, args):
        v = _Builder(context, builder, dtype)
        data, sums = v.data(signature.args[0], args[0]), v.data(signature.args[10], args[10])
        step, share, d0, d1 = _Step(builder, dtype, args[3:7]), *(v.fill(x) for x in args[7:10])
        places = [ir.Constant(ir.IntType(64), LANES * i) for i in range(SUMS)]
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, ir.Constant(ir.IntType(64), LANES)))
            d, t, free = step.at(loop.index)
            # Where the factor is zero so is the field.
            factor, least = step.factor(free, share), v.constant(2.0**-60)
            usable = builder.fcmp_ordered(">", factor, least)
            value = builder.fdiv(v.load(data, at), builder.select(usable, factor, v.constant(1)))
            value = builder.select(usable, value, v.constant(0))
            slope = v.mul(v.mul(value, t), builder.fsub(v.constant(1), t))
            terms = (slope, v.mul(slope, d0), v.mul(slope, d1), v.mul(slope, d),
                     v.mul(slope, v.add(t, v.constant(-0.5))), v.mul(value, free))
            for place, term in zip(places, terms):
                v.store(v.add(v.load(sums, place), term), sums, place)
        return context.get_dummy_value()

    return signature, generate
