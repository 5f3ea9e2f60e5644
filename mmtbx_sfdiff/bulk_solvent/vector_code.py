"""Vector instructions of the probe-shrink mask's inner loops, for a few points of a row.

With d = start, start + 1, ..., the first two take t = a0 + a1 d + a2 d^2, cut to 0..1, and S = t^2 (3 - 2 t).  What is
zero stays zero: eight points at a time are left alone when all are.
"""
from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..structure_factors.vector_code import LANES, VectorBuilder

SUMS = 6
#: Blocks of eight sums that are made together.
TOGETHER = 4


def _i64(value):
    return ir.Constant(ir.IntType(64), value)


def _any(v, value):
    """Whether any lane is not zero."""
    flags = v.b.fcmp_unordered("!=", value, v.constant(0))
    return v.b.icmp_unsigned("!=", v.b.bitcast(flags, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0))


class _Step:
    """t and 1 - S of one block of points."""

    def __init__(self, builder, dtype, numbers):
        self.v = VectorBuilder(None, builder, dtype)
        self.a0, self.a1, self.a2, self.start = (self.v.fill(x) for x in numbers)

    def at(self, block):
        v = self.v
        shift = v.fill(v.b.sitofp(v.b.mul(block, _i64(LANES)), v.scalar))
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
        v = VectorBuilder(context, builder, dtype)
        data = v.data(signature.args[0], args[0])
        step, share = _Step(builder, dtype, args[3:7]), v.fill(args[7])
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, _i64(LANES)))
            value = v.load(data, at)
            with builder.if_then(_any(v, value)):
                free = step.at(loop.index)[2]
                v.store(builder.fmul(value, step.factor(free, share)), data, at)
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
        v = VectorBuilder(context, builder, dtype)
        data, sums = v.data(signature.args[0], args[0]), v.data(signature.args[10], args[10])
        step, share, d0, d1 = _Step(builder, dtype, args[3:7]), *(v.fill(x) for x in args[7:10])
        places = [_i64(LANES * i) for i in range(SUMS)]
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, _i64(LANES)))
            value = v.load(data, at)
            with builder.if_then(_any(v, value)):
                d, t, free = step.at(loop.index)
                # Where the factor is zero so is the field.
                factor, least = step.factor(free, share), v.constant(2.0**-60)
                usable = builder.fcmp_ordered(">", factor, least)
                value = builder.fdiv(value, builder.select(usable, factor, v.constant(1)))
                value = builder.select(usable, value, v.constant(0))
                slope = v.mul(v.mul(value, t), builder.fsub(v.constant(1), t))
                terms = (slope, v.mul(slope, d0), v.mul(slope, d1), v.mul(slope, d),
                         v.mul(slope, v.add(t, v.constant(-0.5))), v.mul(value, free))
                for place, term in zip(places, terms):
                    v.store(v.add(v.load(sums, place), term), sums, place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def weighted_sums(typing, out, data, index, n_blocks, offsets, weights, first, after):
    """out[i] = sum over s from first to after of weights[s] data[index + offsets[s] + i], for 8 n_blocks values of i."""
    dtype = data.dtype
    signature = types.void(out, data, types.int64, types.int64, offsets, weights, types.int64, types.int64)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        out, data, offsets, weights = (v.data(signature.args[i], args[i]) for i in (0, 1, 4, 5))
        index, n_blocks, first, after = args[2], args[3], args[6], args[7]

        def sum_blocks(start, number):
            sums = [cgutils.alloca_once(builder, v.vector) for _ in range(number)]
            for accumulator in sums:
                builder.store(v.constant(0), accumulator)
            begin = builder.add(index, start)
            with cgutils.for_range_slice(builder, first, after, _i64(1)) as (step, _):
                weight = v.load_all(weights, step)
                at = builder.add(begin, builder.load(builder.gep(offsets, [step])))
                for i, accumulator in enumerate(sums):
                    term = v.mul(weight, v.load(data, builder.add(at, _i64(LANES * i))))
                    builder.store(v.add(builder.load(accumulator), term), accumulator)
            for i, accumulator in enumerate(sums):
                v.store(builder.load(accumulator), out, builder.add(start, _i64(LANES * i)))

        groups = builder.sdiv(n_blocks, _i64(TOGETHER))
        with cgutils.for_range(builder, groups) as loop:
            sum_blocks(builder.mul(loop.index, _i64(LANES * TOGETHER)), TOGETHER)
        done = builder.mul(groups, _i64(TOGETHER))
        with cgutils.for_range(builder, builder.sub(n_blocks, done)) as loop:
            sum_blocks(builder.mul(builder.add(done, loop.index), _i64(LANES)), 1)
        return context.get_dummy_value()

    return signature, generate
