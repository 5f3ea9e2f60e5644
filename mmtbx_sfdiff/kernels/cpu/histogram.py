"""What the error model has to know of the atoms, compiled for the CPU."""

from __future__ import annotations

import math

from ..jit import jit_in_place


@jit_in_place
def _cart(u, p, q):
    """p U q, U packed."""
    return (
        u[0] * p[0] * q[0]
        + u[1] * p[1] * q[1]
        + u[2] * p[2] * q[2]
        + u[3] * (p[0] * q[1] + p[1] * q[0])
        + u[4] * (p[0] * q[2] + p[2] * q[0])
        + u[5] * (p[1] * q[2] + p[2] * q[1])
    )


@jit_in_place
def _bin(e, first, scale, log_growth, n_bins):
    """The bin of an exponent, and how much of it belongs to the next one."""
    at = math.log(max((e - first) / scale + 1, 1.0)) / log_growth
    # What is no number goes to the first bin.
    at = min(at, n_bins - 1.001) if at > 0 else 0.0
    low = int(at)
    return low, at - low


@jit_in_place
def population(
    u_iso,
    u_star,
    use_aniso,
    orthogonalization,
    scale,
    weights,
    extras,
    least_extra,
    types,
    first,
    bin_scale,
    log_growth,
    result,
):
    """Add the atoms of one model to ``result``, (3, n_types + 1, n_bins): squared weights by type and exponent.

    The exponents are u_iso scale, of isotropic atoms in result[0]; anisotropic atoms enter with the smallest eigenvalue of
    their U in result[1], and with the mean in result[2].  ``extras`` is (n_extras, n_atoms), constant terms of the form
    factor, taken to be ``least_extra`` at least: in the last row of result[0].  Returns (numbers of isotropic and of
    anisotropic atoms with weight, largest exponent in any direction, largest |weight|, smallest exponent in any direction,
    atoms of the largest and of the smallest exponent).
    """
    n_bins = result.shape[2]
    n_iso, n_aniso, largest, heaviest, least, widest_atom, least_atom = 0, 0, 0.0, 0.0, 0.0, 0, 0
    o = orthogonalization
    for a in range(len(weights)):
        e = u_iso[a] * scale
        widest, middle = e, e
        if use_aniso[a]:
            u = u_star[a]
            # Rows: numbers of rows would be compiled each by itself.
            xx, yy, zz = _cart(u, o[0], o[0]), _cart(u, o[1], o[1]), _cart(u, o[2], o[2])
            xy, xz, yz = _cart(u, o[0], o[1]), _cart(u, o[0], o[2]), _cart(u, o[1], o[2])
            # Eigenvalues of a symmetric 3 x 3 matrix in closed form.
            mean = (xx + yy + zz) / 3
            x, y, z = xx - mean, yy - mean, zz - mean
            off = xy**2 + xz**2 + yz**2
            size = max(math.sqrt((x * x + y * y + z * z + 2 * off) / 6), 1e-30)
            det = (x * (y * z - yz**2) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)) / (2 * size**3)
            angle = math.acos(min(max(det, -1.0), 1.0)) / 3
            middle += scale * max(mean, 0.0)
            e += scale * (mean + 2 * size * math.cos(angle + 2 * math.pi / 3))
            widest += scale * (mean + 2 * size * math.cos(angle))
        weight = weights[a] * weights[a]
        heaviest = max(heaviest, weight)
        if widest > largest:
            largest, widest_atom = widest, a
        if e < least:
            least, least_atom = e, a
        if weight > 0:
            if use_aniso[a]:
                n_aniso += 1
            else:
                n_iso += 1
        low, high = _bin(e, first, bin_scale, log_growth, n_bins)
        part = 1 if use_aniso[a] else 0
        result[part, types[a], low] += weight * (1 - high)
        result[part, types[a], low + 1] += weight * high
        for i in range(extras.shape[0]):
            extra = max(abs(extras[i, a]), least_extra)
            result[0, result.shape[1] - 1, low] += weight * extra * extra
        if use_aniso[a]:
            low, high = _bin(middle, first, bin_scale, log_growth, n_bins)
            result[2, types[a], low] += weight * (1 - high)
            result[2, types[a], low + 1] += weight * high
    return n_iso, n_aniso, largest, math.sqrt(heaviest), least, widest_atom, least_atom


@jit_in_place
def sharpest(aliases, noises, histogram, norms, wanted, rounding, bound):
    """:meth:`ErrorModel.sharpening`: the largest number of the ladder with errors within the bound, or -1."""
    begin, end = histogram.shape[1], 0
    for e in range(histogram.shape[1]):
        for t in range(histogram.shape[0]):
            if histogram[t, e] != 0:
                begin, end = min(begin, e), e + 1
    for p in range(aliases.shape[0] - 1, -1, -1):
        worst = 0.0
        for order in range(3):
            if wanted[order]:
                found = 0.0
                for t in range(histogram.shape[0]):
                    for e in range(begin, end):
                        found += aliases[p, order, t, e] * histogram[t, e]
                worst = max(worst, found / norms[order])
        if worst > bound:
            continue
        noise = 0.0
        for t in range(histogram.shape[0]):
            for e in range(begin, end):
                noise += noises[p, t, e] * histogram[t, e]
        if worst + rounding * rounding * noise / norms[0] <= bound:
            return p
    return -1


@jit_in_place
def mean_squares(norms, histogram, result):
    """result[m] = sum of norms[m] times the histogram, without its last row."""
    for m in range(norms.shape[0]):
        total = 0.0
        for t in range(histogram.shape[0] - 1):
            for e in range(histogram.shape[1]):
                total += norms[m, t, e] * histogram[t, e]
        result[m] = total


@jit_in_place
def summary(histogram, bins, part):
    """(sum, mean exponent, place that ``part`` of it lies up to, whether the last row has anything), of all types."""
    n_types, n_bins = histogram.shape[0] - 1, histogram.shape[1]
    total, moment, extra = 0.0, 0.0, False
    for e in range(n_bins):
        for t in range(n_types):
            total += histogram[t, e]
            moment += histogram[t, e] * bins[e]
        extra = extra or histogram[n_types, e] != 0
    below, place = 0.0, n_bins - 1
    for e in range(n_bins):
        for t in range(n_types):
            below += histogram[t, e]
        if below >= part * total:
            place = e
            break
    return total, moment / total, place, extra
