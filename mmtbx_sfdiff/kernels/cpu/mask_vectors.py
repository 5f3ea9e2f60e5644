"""Vector instructions of the probe-shrink mask's inner loops, for a few points of a row.

With d = start, start + 1, ..., the first two take t = a0 + a1 d + a2 d^2, cut to 0..1, and S = t^2 (3 - 2 t).  What is
zero stays zero.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .density_vectors import VectorBuilder

LANES = 16
SUMS = 6
#: Blocks of sums that are made together.
TOGETHER = 4


_I64 = ir.IntType(64)


def _i64(value):
    return ir.Constant(_I64, value)


def _any(v, value):
    """Whether any lane is not zero."""
    flags = v.b.fcmp_unordered("!=", value, v.constant(0))
    bits = ir.IntType(LANES)
    return v.b.icmp_unsigned("!=", v.b.bitcast(flags, bits), ir.Constant(bits, 0))


class _Step:
    """d, t and S of one block of points."""

    def __init__(self, builder, dtype, numbers):
        self.v = VectorBuilder(None, builder, dtype, LANES)
        self.a0, self.a1, self.a2, start = (self.v.fill(x) for x in numbers)
        self.first = self.v.add(self.v.lanes(), start)

    def at(self, block):
        v = self.v
        d = v.add(self.first, v.fill(v.b.sitofp(v.b.mul(block, _i64(LANES)), v.scalar)))
        t = v.add(self.a0, v.mul(d, v.add(self.a1, v.mul(d, self.a2))))
        one, zero = v.constant(1), v.constant(0)
        t = v.b.select(v.b.fcmp_ordered("<", t, one), t, one)
        t = v.b.select(v.b.fcmp_ordered(">", t, zero), t, zero)
        return d, t, v.mul(v.mul(t, t), v.add(v.constant(3), v.mul(v.constant(-2), t)))


@intrinsic
def multiply_blocks(typing, field, index, n_blocks, a0, a1, a2, start, share):
    """field[index + i] *= 1 - share (1 - S), for LANES n_blocks values of i."""
    dtype = field.dtype
    signature = types.void(field, types.int64, types.int64, *[dtype] * 5)

    def generate(context, builder, signature, args):
        step = _Step(builder, dtype, args[3:7])
        v, share = VectorBuilder(context, builder, dtype, LANES), step.v.fill(args[7])
        kept, data = builder.fsub(v.constant(1), share), v.data(signature.args[0], args[0])
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, _i64(LANES)))
            s = step.at(loop.index)[2]
            v.store(v.mul(v.load(data, at), v.add(kept, v.mul(share, s))), data, at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def attribute_blocks(typing, field, index, n_blocks, a0, a1, a2, start, share, d0, d1, all_sums, sums):
    """Add sums in lanes of slope times d0, d1, d to ``sums``; with ``all_sums`` also of slope, slope (t - 1/2), value (1 - S).

    value = field[index + i] / (1 - share (1 - S)), slope = value t (1 - t).
    """
    dtype = field.dtype
    signature = types.void(field, types.int64, types.int64, *[dtype] * 7, types.boolean, sums)

    def generate(context, builder, signature, args):
        step = _Step(builder, dtype, args[3:7])
        v = VectorBuilder(context, builder, dtype, LANES)
        share, d0, d1 = (v.fill(x) for x in args[7:10])
        data, sums = v.data(signature.args[0], args[0]), v.data(signature.args[11], args[11])
        one, kept = v.constant(1), builder.fsub(v.constant(1), share)

        def accumulate(first, terms):
            for i, term in enumerate(terms):
                place = _i64(LANES * (first + i))
                v.store(v.add(v.load(sums, place), term), sums, place)

        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, _i64(LANES)))
            value = v.load(data, at)
            with builder.if_then(_any(v, value)):
                d, t, s = step.at(loop.index)
                # Where the factor is zero so is the field.
                factor = v.add(kept, v.mul(share, s))
                usable = builder.fcmp_ordered(">", factor, v.constant(2.0**-60))
                value = builder.fdiv(value, builder.select(usable, factor, one))
                value = builder.select(usable, value, v.constant(0))
                slope = v.mul(v.mul(value, t), builder.fsub(one, t))
                accumulate(0, (v.mul(slope, d0), v.mul(slope, d1), v.mul(slope, d)))
                with builder.if_then(args[10]):
                    accumulate(3, (slope, v.mul(slope, v.add(t, v.constant(-0.5))), v.mul(value, builder.fsub(one, s))))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def mark_blocks(typing, field, index, n_blocks, marks):
    """marks[n] = 1 where any of field[index + LANES n + i] is neither 0 nor 1 but between, else 0."""
    dtype = field.dtype
    signature = types.void(field, types.int64, types.int64, marks)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype, LANES)
        data, marks = v.data(signature.args[0], args[0]), v.data(signature.args[3], args[3])
        with cgutils.for_range(builder, args[2]) as loop:
            value = v.load(data, builder.add(args[1], builder.mul(loop.index, _i64(LANES))))
            some = builder.fcmp_ordered(">", value, v.constant(0)), builder.fcmp_ordered("<", value, v.constant(1))
            bits = builder.bitcast(builder.and_(*some), ir.IntType(LANES))
            found = builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))
            place = builder.gep(marks, [loop.index], source_etype=ir.IntType(8))
            builder.store(builder.zext(found, ir.IntType(8)), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def weighted_sums(typing, out, data, index, n_blocks, offsets, weights, first, after):
    """out[i] = sum over s from first to after of weights[s] data[index + offsets[s] + i], for LANES n_blocks values of i."""
    dtype = data.dtype
    signature = types.void(out, data, types.int64, types.int64, offsets, weights, types.int64, types.int64)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype, LANES)
        out, data, offsets, weights = (v.data(signature.args[i], args[i]) for i in (0, 1, 4, 5))
        index, n_blocks, first, after = args[2], args[3], args[6], args[7]

        def sum_blocks(start, number):
            sums = [v.variable(v.constant(0)) for _ in range(number)]
            begin = builder.add(index, start)
            with cgutils.for_range_slice(builder, first, after, _i64(1)) as (step, _):
                weight = v.load_all(weights, step)
                place = builder.gep(offsets, [step], source_etype=_I64)
                at = builder.add(begin, builder.load(place, typ=_I64))
                for i, accumulator in enumerate(sums):
                    term = v.mul(weight, v.load(data, builder.add(at, _i64(LANES * i))))
                    builder.store(v.add(v.value_of(accumulator), term), accumulator)
            for i, accumulator in enumerate(sums):
                v.store(v.value_of(accumulator), out, builder.add(start, _i64(LANES * i)))

        done, number = _i64(0), TOGETHER
        while number:
            groups = builder.sdiv(builder.sub(n_blocks, done), _i64(number))
            with cgutils.for_range(builder, groups) as loop:
                sum_blocks(builder.mul(builder.add(done, builder.mul(loop.index, _i64(number))), _i64(LANES)), number)
            done = builder.add(done, builder.mul(groups, _i64(number)))
            number //= 2
        return context.get_dummy_value()

    return signature, generate
