"""Eight-lane vector operations for the compiled loops, written as LLVM instructions.

The loops over a few grid points at the heart of the splat are too short for a compiler's own vectoriser, so
numba is given the vector instructions.  Everything works on a flat grid and on a flat scratch table of the
same dtype; offsets and strides count elements.  LLVM maps eight lanes to whatever the processor has (one AVX,
two SSE or NEON registers).
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8
_CONTRACT = ("contract", "nsz", "reassoc")
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class VectorBuilder:
    """The few vector instructions used here, for one dtype."""

    def __init__(self, context, builder, dtype, lanes=LANES):
        self.context, self.b, self.dtype, self.n_lanes = context, builder, dtype, lanes
        self.single = dtype.bitwidth == 32
        self.scalar = ir.FloatType() if self.single else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, lanes)

    def data(self, array_type, array):
        return self.context.make_array(array_type)(self.context, self.b, array).data

    def address(self, data, offset):
        return self.b.bitcast(self.b.gep(data, [offset], source_etype=self.scalar), self.vector.as_pointer())

    def load(self, data, offset):
        return self.b.load(self.address(data, offset), align=self.dtype.bitwidth // 8, typ=self.vector)

    def store(self, value, data, offset):
        self.b.store(value, self.address(data, offset), align=self.dtype.bitwidth // 8)

    def load_all(self, data, offset):
        """One element in every lane."""
        return self.fill(self.b.load(self.b.gep(data, [offset], source_etype=self.scalar), typ=self.scalar))

    def variable(self, value):
        """Storage for a vector, which the compiler keeps in a register."""
        place = cgutils.alloca_once(self.b, self.vector)
        self.b.store(value, place)
        return place

    def value_of(self, place):
        """What a :meth:`variable` holds."""
        return self.b.load(place, typ=self.vector)

    def fill(self, value):
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.b.insert_element(undefined, value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, self.n_lanes), [0] * self.n_lanes))

    def constant(self, value):
        return ir.Constant(self.vector, [float(value)] * self.n_lanes)

    def lanes(self):
        return ir.Constant(self.vector, [float(i) for i in range(self.n_lanes)])

    def add(self, x, y):
        return self.b.fadd(x, y, flags=_CONTRACT)

    def mul(self, x, y):
        return self.b.fmul(x, y, flags=_CONTRACT)

    def exp_of_negative(self, x):
        """exp(x) for x <= 0 or a little above, to rounding; 2^n times a polynomial on [-1/2, 1/2]."""
        floor = -87.0 if self.single else -700.0
        low = self.constant(floor)
        x = self.b.select(self.b.fcmp_ordered(">", x, low), x, low)
        turns = self.b.fmul(x, self.constant(1 / math.log(2)))
        mantissa, degree, integer = (23, 7, _I32) if self.single else (52, 12, _I64)
        # Adding 1.5 * 2^mantissa leaves the rounded value in the low bits.
        magic = self.constant(1.5 * 2.0**mantissa)
        shifted = self.b.fadd(turns, magic)
        fraction = self.b.fsub(turns, self.b.fsub(shifted, magic))
        value = self.constant(math.log(2) ** degree / math.factorial(degree))
        for k in range(degree - 1, -1, -1):
            value = self.add(self.mul(value, fraction), self.constant(math.log(2) ** k / math.factorial(k)))
        integers = ir.VectorType(integer, self.n_lanes)
        shift = ir.Constant(integers, [mantissa] * self.n_lanes)
        exponent = self.b.shl(self.b.bitcast(shifted, integers), shift)
        return self.b.bitcast(self.b.add(self.b.bitcast(value, integers), exponent), self.vector)

    def sum(self, x):
        width = self.n_lanes
        while width > 1:
            width //= 2
            mask = [i + width if i < width else i for i in range(self.n_lanes)]
            undefined = ir.Constant(self.vector, ir.Undefined)
            lanes = ir.Constant(ir.VectorType(_I32, self.n_lanes), mask)
            x = self.add(x, self.b.shuffle_vector(x, undefined, lanes))
        return self.b.extract_element(x, ir.Constant(_I32, 0))


def _i64(value):
    return ir.Constant(_I64, value)


@intrinsic
def store_gaussian(typing, table, offset, n_blocks, a, b, c, first):
    """table[offset + i] = exp(-(a + b t + c t^2)), t = first + i, for 8 n_blocks values of i."""
    dtype = table.dtype
    signature = types.void(table, types.int64, types.int64, dtype, dtype, dtype, dtype)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        table, offset, n_blocks, a, b, c, first = args
        data = v.data(signature.args[0], table)
        a, b, c = (v.fill(builder.fneg(x)) for x in (a, b, c))
        first = v.fill(first)
        with cgutils.for_range(builder, n_blocks) as loop:
            start = builder.mul(loop.index, _i64(LANES))
            shift = v.fill(builder.sitofp(start, v.scalar))
            t = v.add(v.add(v.lanes(), shift), first)
            exponent = v.add(a, v.mul(t, v.add(b, v.mul(t, c))))
            v.store(v.exp_of_negative(exponent), data, builder.add(offset, start))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def multiply(typing, table, offset, x, y, n_blocks):
    """table[offset + i] = table[x + i] table[y + i] for 8 n_blocks values of i."""
    dtype = table.dtype
    signature = types.void(table, *[types.int64] * 4)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        table, offset, x, y, n_blocks = args
        data = v.data(signature.args[0], table)
        with cgutils.for_range(builder, n_blocks) as loop:
            start = builder.mul(loop.index, _i64(LANES))
            x_value, y_value = (v.load(data, builder.add(at, start)) for at in (x, y))
            v.store(v.mul(x_value, y_value), data, builder.add(offset, start))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def store_plane(typing, table, offset, n_blocks, n_rows, width, b, c, first_row, first):
    """table[offset + j width + i] = exp(-(b y t + c t^2)), y = first_row + j, t = first + i.

    For 8 n_blocks values of i and n_rows of j: a geometric progression along j.
    """
    dtype = table.dtype
    signature = types.void(table, *[types.int64] * 4, *[dtype] * 4)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        table, offset, n_blocks, n_rows, width, b, c, first_row, first = args
        data = v.data(signature.args[0], table)
        b, c = (v.fill(builder.fneg(x)) for x in (b, c))
        first_row, first = v.fill(first_row), v.fill(first)
        with cgutils.for_range(builder, n_blocks) as block:
            start = builder.mul(block.index, _i64(LANES))
            t = v.add(v.add(v.lanes(), v.fill(builder.sitofp(start, v.scalar))), first)
            slope = v.mul(b, t)
            value = v.variable(v.exp_of_negative(v.mul(slope, first_row)))
            ratio = v.exp_of_negative(slope)
            along = v.exp_of_negative(v.mul(v.mul(t, t), c))
            at = builder.add(offset, start)
            with cgutils.for_range(builder, n_rows) as loop:
                now = v.value_of(value)
                v.store(v.mul(now, along), data, builder.add(at, builder.mul(loop.index, width)))
                builder.store(v.mul(now, ratio), value)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_rows(typing, grid, start, stride, n_rows, table, x1, x2, y1, y2, z1, z2):
    """grid[start + j stride + lane] += x1 y1[j] z1[lane] + x2 y2[j] z2[lane] for j < n_rows."""
    dtype = grid.dtype
    signature = types.void(grid, *[types.int64] * 3, table, dtype, dtype, *[types.int64] * 4)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        grid, start, stride, n_rows, table, x1, x2, y1, y2, z1, z2 = args
        data, values = v.data(signature.args[0], grid), v.data(signature.args[4], table)
        first, second = v.mul(v.fill(x1), v.load(values, z1)), v.mul(v.fill(x2), v.load(values, z2))
        with cgutils.for_range(builder, n_rows) as loop:
            j = loop.index
            at = builder.add(start, builder.mul(j, stride))
            value = v.add(v.load(data, at), v.mul(first, v.load_all(values, builder.add(y1, j))))
            v.store(v.add(value, v.mul(second, v.load_all(values, builder.add(y2, j)))), data, at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_rows_oblique(typing, grid, start, stride, n_rows, table, x1, x2, y1, y2, z1, z2, yz1, yz2, width):
    """As :func:`add_rows` with x1 y1[j] yz1[j width + lane] z1[lane], and the same for 2."""
    dtype = grid.dtype
    signature = types.void(grid, *[types.int64] * 3, table, dtype, dtype, *[types.int64] * 7)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        grid, start, stride, n_rows, table, x1, x2, y1, y2, z1, z2, yz1, yz2, width = args
        data, values = v.data(signature.args[0], grid), v.data(signature.args[4], table)
        first, second = v.mul(v.fill(x1), v.load(values, z1)), v.mul(v.fill(x2), v.load(values, z2))
        with cgutils.for_range(builder, n_rows) as loop:
            j = loop.index
            at, row = builder.add(start, builder.mul(j, stride)), builder.mul(j, width)
            value = v.load(data, at)
            for z, y, yz in ((first, y1, yz1), (second, y2, yz2)):
                plane = v.mul(z, v.load(values, builder.add(yz, row)))
                value = v.add(value, v.mul(plane, v.load_all(values, builder.add(y, j))))
            v.store(value, data, at)
        return context.get_dummy_value()

    return signature, generate


def _row_moments(v, builder, n_rows, first_y, weigh, read):
    """Sums over rows of value, value y, value y^2 for two weights: six accumulators that stay in
    registers."""
    sums = [v.variable(v.constant(0.0)) for _ in range(6)]
    position = v.variable(v.fill(first_y))
    with cgutils.for_range(builder, n_rows) as loop:
        value, y = read(loop.index), v.value_of(position)
        for k in range(2):
            moment = v.mul(value, weigh(k, loop.index))
            for power in range(3):
                accumulator = sums[3 * k + power]
                builder.store(v.add(v.value_of(accumulator), moment), accumulator)
                if power < 2:
                    moment = v.mul(moment, y)
        builder.store(v.add(y, v.constant(1.0)), position)
    return [v.value_of(accumulator) for accumulator in sums]


def _add_moments(v, builder, sums, scales, u, values, out):
    """Add row sums of one plane, at u, to the moments of the box: table[out + 48 k + 8 i + lane] for term k.

    With B0, B1, B2 the sums times the scale, B0, u B0, u^2 B0, B1, u B1, B2.
    """
    u = v.fill(u)
    for k in range(2):
        zero, one, two = (v.mul(scales[k], x) for x in sums[3 * k : 3 * k + 3])
        first = v.mul(zero, u)
        for i, value in enumerate((zero, first, v.mul(first, u), one, v.mul(one, u), two)):
            at = builder.add(out, _i64(6 * LANES * k + LANES * i))
            v.store(v.add(v.load(values, at), value), values, at)


@intrinsic
def add_moments(typing, grid, start, stride, n_rows, table, y1, y2, first_y, x1, x2, u, out):
    """Moments along two axes of rows grid[start + j stride ...] under xk yk[j]; see :func:`_add_moments`."""
    dtype = grid.dtype
    signature = types.void(grid, *[types.int64] * 3, table, types.int64, types.int64, *[dtype] * 4, types.int64)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        grid, start, stride, n_rows, table, y1, y2, first_y, x1, x2, u, out = args
        data, values = v.data(signature.args[0], grid), v.data(signature.args[4], table)
        sums = _row_moments(
            v,
            builder,
            n_rows,
            first_y,
            lambda k, j: v.load_all(values, builder.add((y1, y2)[k], j)),
            lambda j: v.load(data, builder.add(start, builder.mul(j, stride))),
        )
        _add_moments(v, builder, sums, (v.fill(x1), v.fill(x2)), u, values, out)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_moments_oblique(
    typing, grid, start, stride, n_rows, table, y1, y2, first_y, yz1, yz2, width, z1, z2, x1, x2, u, out
):
    """As :func:`add_moments` under xk zk[lane] yk[j] yzk[j width + lane]."""
    dtype = grid.dtype
    signature = types.void(
        grid, *[types.int64] * 3, table, types.int64, types.int64, dtype, *[types.int64] * 5, *[dtype] * 3, types.int64
    )

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        grid, start, stride, n_rows, table, y1, y2, first_y, yz1, yz2, width, z1, z2, x1, x2, u, out = args
        data, values = v.data(signature.args[0], grid), v.data(signature.args[4], table)

        def weigh(k, j):
            plane = v.load(values, builder.add((yz1, yz2)[k], builder.mul(j, width)))
            return v.mul(plane, v.load_all(values, builder.add((y1, y2)[k], j)))

        sums = _row_moments(
            v, builder, n_rows, first_y, weigh, lambda j: v.load(data, builder.add(start, builder.mul(j, stride)))
        )
        scales = v.mul(v.fill(x1), v.load(values, z1)), v.mul(v.fill(x2), v.load(values, z2))
        _add_moments(v, builder, sums, scales, u, values, out)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def finish_moments(typing, table, moments, block_size, n_blocks, z, z_size, first):
    """Moments of the box of one term: 1; x, y, z; xx, yy, zz; xy, xz, yz.

    Sums over lanes and blocks of table[moments + block_size block ...], as :func:`add_moments` left them,
    times table[z + z_size block + lane] and powers of t = first + 8 block + lane.
    """
    dtype = table.dtype
    signature = types.UniTuple(dtype, 10)(table, *[types.int64] * 5, dtype)

    def generate(context, builder, signature, args):
        v = VectorBuilder(context, builder, dtype)
        table, moments, block_size, n_blocks, z, z_size, first = args
        values = v.data(signature.args[0], table)
        sums = [v.variable(v.constant(0.0)) for _ in range(10)]
        first = v.fill(first)
        with cgutils.for_range(builder, n_blocks) as loop:
            block = loop.index
            at = builder.add(moments, builder.mul(block, block_size))
            weight = v.load(values, builder.add(z, builder.mul(block, z_size)))
            shift = v.fill(builder.sitofp(builder.mul(block, _i64(LANES)), v.scalar))
            t = v.add(v.add(v.lanes(), shift), first)
            m0, mx, mxx, my, mxy, myy = (
                v.mul(weight, v.load(values, builder.add(at, _i64(LANES * i)))) for i in range(6)
            )
            mz = v.mul(m0, t)
            found = m0, mx, my, mz, mxx, myy, v.mul(mz, t), mxy, v.mul(mx, t), v.mul(my, t)
            for accumulator, value in zip(sums, found):
                builder.store(v.add(v.value_of(accumulator), value), accumulator)
        results = [v.sum(v.value_of(accumulator)) for accumulator in sums]
        return context.make_tuple(builder, signature.return_type, results)

    return signature, generate
