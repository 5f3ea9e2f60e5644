"""Limited-memory BFGS with the line search of Moré and Thuente, step for step as cctbx runs it.

Several parts of mmtbx's scaling are the result of a minimisation that stops early or at a tolerance, so that
its outcome depends on the path.  Following the same path gives the same outcome; another optimiser would not.
Problems here have 1 to 13 parameters: everything is plain floats.

References: Liu & Nocedal (1989), Math. Program. 45, 503; Moré & Thuente (1994), ACM TOMS 20, 286;
``scitbx.lbfgs`` and ``scitbx.line_search`` for constants, tests and their order.
"""

from __future__ import annotations

import math

import numpy as np

_STEP_MIN, _STEP_MAX = 1e-20, 1e20
_X_TOLERANCE = 1e-16
_SUFFICIENT_DECREASE = 1e-4
_MAX_EVALUATIONS = 20


class LineSearchFailed(RuntimeError):
    """The line search cannot make further progress."""


class LineSearch:
    """Search for a step along a direction, by reverse communication.

    ``step`` is where the function is wanted next; :meth:`advance` takes its value and slope there, and
    returns True when the step is good.
    """

    def __init__(self, value, slope, step, curvature_tolerance=0.9):
        if slope >= 0:
            raise LineSearchFailed("The search direction is not a descent direction.")
        self.tolerance = curvature_tolerance
        self.value0, self.slope0 = value, slope
        self.slope_test = _SUFFICIENT_DECREASE * slope
        self.step = step
        self.bracketed, self.first_stage = False, True
        self.width = _STEP_MAX - _STEP_MIN
        self.previous_width = 2 * self.width
        # (step, value, slope) at the best step so far, and at the other end of the interval of uncertainty.
        self.best = (0.0, value, slope)
        self.other = (0.0, value, slope)
        self.n_evaluations = 0
        self.usable = True
        self._place()

    def _place(self):
        """Keep the next step inside the interval of uncertainty and the bounds."""
        if self.bracketed:
            self.low, self.high = sorted((self.best[0], self.other[0]))
        else:
            self.low, self.high = self.best[0], self.step + 4 * (self.step - self.best[0])
        self.step = min(max(self.step, _STEP_MIN), _STEP_MAX)
        if (
            self.bracketed
            and (self.step <= self.low or self.step >= self.high)
            or self.n_evaluations >= _MAX_EVALUATIONS - 1
            or not self.usable
            or self._interval_is_tiny()
        ):
            self.step = self.best[0]

    def _interval_is_tiny(self):
        return self.bracketed and self.high - self.low <= _X_TOLERANCE * self.high

    def advance(self, value, slope):
        """Report value and slope at ``step``; True when the search has ended there.

        Raises
        ------
        LineSearchFailed
        """
        self.n_evaluations += 1
        limit = self.value0 + self.step * self.slope_test
        if self.bracketed and (self.step <= self.low or self.step >= self.high) or not self.usable:
            raise LineSearchFailed("Rounding errors prevent further progress.")
        if self.step == _STEP_MAX and value <= limit and slope <= self.slope_test:
            raise LineSearchFailed("The step is at its upper bound.")
        if self.step == _STEP_MIN and (value > limit or slope >= self.slope_test):
            raise LineSearchFailed("The step is at its lower bound.")
        if self.n_evaluations >= _MAX_EVALUATIONS:
            raise LineSearchFailed("Too many evaluations.")
        if self._interval_is_tiny():
            raise LineSearchFailed("The interval of uncertainty is too small.")
        if value <= limit and abs(slope) <= self.tolerance * -self.slope0:
            return True
        if self.first_stage and value <= limit and slope >= min(_SUFFICIENT_DECREASE, self.tolerance) * self.slope0:
            self.first_stage = False
        if self.first_stage and value <= self.best[1] and value > limit:
            # A lower value without sufficient decrease: predict with the function less its expected decrease.
            test = self.slope_test
            best, other, self.step = self._update(
                _tilted(self.best, test), _tilted(self.other, test), _tilted((self.step, value, slope), test)
            )
            self.best, self.other = _tilted(best, -test), _tilted(other, -test)
        else:
            self.best, self.other, self.step = self._update(self.best, self.other, (self.step, value, slope))
        if self.bracketed:
            span = abs(self.other[0] - self.best[0])
            if span >= 0.66 * self.previous_width:
                self.step = self.best[0] + 0.5 * (self.other[0] - self.best[0])
            self.previous_width, self.width = self.width, span
        self._place()
        return False

    def _update(self, best, other, new):
        """The smaller interval of uncertainty, and a safeguarded step (dcstep of MINPACK)."""
        (x, fx, dx), (y, fy, dy), (t, ft, dt) = best, other, new
        if (self.bracketed and (t <= min(x, y) or t >= max(x, y))) or dx * (t - x) >= 0 or self.high < self.low:
            self.usable = False
            return best, other, t
        opposite = dt * (dx / abs(dx)) if dx else 0.0
        if ft > fx:
            # A higher value: the minimum is bracketed.
            bound = True
            theta, gamma = _cubic(x, fx, dx, t, ft, dt, t < x)
            r = _ratio((gamma - dx) + theta, ((gamma - dx) + gamma) + dt)
            cubic = x + r * (t - x)
            quadratic = x + dx / ((fx - ft) / (t - x) + dx) / 2 * (t - x)
            step = cubic if abs(cubic - x) < abs(quadratic - x) else cubic + (quadratic - cubic) / 2
            self.bracketed = True
        elif opposite < 0:
            # A lower value and slopes of opposite sign: bracketed.
            bound = False
            theta, gamma = _cubic(x, fx, dx, t, ft, dt, t > x)
            r = _ratio((gamma - dt) + theta, ((gamma - dt) + gamma) + dx)
            cubic = t + r * (x - t)
            quadratic = t + dt / (dt - dx) * (x - t)
            step = cubic if abs(cubic - t) > abs(quadratic - t) else quadratic
            self.bracketed = True
        elif abs(dt) < abs(dx):
            # A lower value, slopes of the same sign, and a flatter one here.
            bound = True
            theta, gamma = _cubic(x, fx, dx, t, ft, dt, t > x, clamp=True)
            r = _ratio((gamma - dt) + theta, (gamma + (dx - dt)) + gamma)
            if r < 0 and gamma != 0:
                cubic = t + r * (x - t)
            else:
                cubic = self.high if t > x else self.low
            quadratic = t + dt / (dt - dx) * (x - t)
            nearer = abs(t - cubic) < abs(t - quadratic)
            if self.bracketed:
                step = cubic if nearer else quadratic
            else:
                step = cubic if abs(t - cubic) > abs(t - quadratic) else quadratic
        else:
            # A lower value, slopes of the same sign, not flatter.
            bound = False
            if self.bracketed:
                theta, gamma = _cubic(y, fy, dy, t, ft, dt, t > y)
                r = _ratio((gamma - dt) + theta, ((gamma - dt) + gamma) + dy)
                step = t + r * (y - t)
            else:
                step = self.high if t > x else self.low
        if ft > fx:
            other = new
        else:
            if opposite < 0:
                other = best
            best = new
        step = max(self.low, min(self.high, step))
        if self.bracketed and bound:
            edge = best[0] + 0.66 * (other[0] - best[0])
            step = min(edge, step) if other[0] > best[0] else max(edge, step)
        return best, other, step


def _tilted(point, slope):
    return point[0], point[1] - point[0] * slope, point[2] - slope


def _cubic(x, fx, dx, t, ft, dt, negative, clamp=False):
    """theta and gamma of the cubic through two points."""
    theta = 3 * (fx - ft) / (t - x) + dx + dt
    s = max(abs(theta), abs(dx), abs(dt))
    square = (theta / s) ** 2 - (dx / s) * (dt / s)
    gamma = s * (math.sqrt(max(0.0, square)) if clamp or square >= 0 else math.nan)
    return theta, -gamma if negative else gamma


def _ratio(p, q):
    return p / q if q else math.copysign(math.inf, p) if p else math.nan


def minimize(evaluate, x, max_iterations=None, tolerance=1e-5, memory=5):
    """Minimise a function of a few parameters.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(x) -> (value, gradient)``, both of NumPy.
    x, max_iterations, tolerance, memory
        See :func:`path`.

    Returns
    -------
    last, lowest, failed
        See :func:`path`.
    """
    points = path(x, max_iterations, tolerance, memory)
    x = next(points)
    while True:
        try:
            x = points.send(evaluate(x))
        except StopIteration as end:
            return end.value


def path(x, max_iterations=None, tolerance=1e-5, memory=5):
    """The points of a minimisation, as a generator: it yields x and is sent the value and the gradient there.

    Parameters
    ----------
    x : array-like
        Start.
    max_iterations : int, optional
    tolerance : float
        Converged when ``|gradient| <= tolerance max(1, |x|)``.
    memory : int
        Number of corrections kept.

    Returns
    -------
    last, lowest : numpy.ndarray
        The last point at which the function was evaluated, and the one with the lowest value.  cctbx returns
        the former when the minimisation ended regularly, and the latter (or the former, depending on the
        caller) when a line search failed.
    failed : bool
        Whether a line search failed.
    """
    x = np.array(x, dtype=np.float64)
    value, gradient = yield x
    lowest_value, lowest = value, x.copy()
    norm = math.sqrt(_dot(gradient, gradient))
    if norm == 0:
        return x, lowest, False
    direction, step = -gradient, 1.0 / norm
    steps, changes = [], []
    iteration = 0
    try:
        while True:
            iteration += 1
            origin, start = x, gradient
            search = LineSearch(value, _dot(gradient, direction), step)
            while True:
                x = origin + search.step * direction
                value, gradient = yield x
                if lowest_value > value:
                    lowest_value, lowest = value, x.copy()
                if search.advance(value, _dot(gradient, direction)):
                    break
            steps.append(search.step * direction)
            changes.append(gradient - start)
            del steps[:-memory], changes[:-memory]
            if math.sqrt(_dot(gradient, gradient)) <= tolerance * max(1.0, math.sqrt(_dot(x, x))):
                break
            if max_iterations is not None and iteration >= max_iterations:
                break
            direction, step = _two_loops(gradient, steps, changes), 1.0
    except LineSearchFailed:
        return x, lowest, True
    return x, lowest, False


def _dot(a, b):
    """Term after term, as scitbx adds: the order that BLAS takes depends on the processor, and with it the path."""
    return float(np.add.accumulate(a * b)[-1])


def _two_loops(gradient, steps, changes):
    """The quasi-Newton direction from the corrections kept."""
    q = -gradient
    rho = [1.0 / _dot(y, s) for s, y in zip(steps, changes)]
    weights = []
    for s, y, r in zip(reversed(steps), reversed(changes), reversed(rho)):
        weights.append(r * _dot(s, q))
        q = q - weights[-1] * y
    q = q * (_dot(changes[-1], steps[-1]) / _dot(changes[-1], changes[-1]))
    for s, y, r, w in zip(steps, changes, rho, reversed(weights)):
        q = q + (w - r * _dot(y, q)) * s
    return q
