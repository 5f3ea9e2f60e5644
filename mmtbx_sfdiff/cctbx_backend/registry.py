"""Putting this package into cctbx: by name for those who ask (:func:`register`), or everywhere (:func:`takeover`).

cctbx has a table of structure-factor algorithms and PHIL words for its entries; :func:`register` adds ``sfdiff`` to
both, a word for the mask, and the hooks of :mod:`.fmodel_hooks`.  Managers that ask for ``fft`` or ``direct`` and
cctbx's mask go through unchanged code and give the same bits as before.

Every change is an entry in a list of (undo) functions, so that what is undone is exactly what was done.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import cctbx.xray.structure_factors as xray_structure_factors
import iotbx.phil
import mmtbx.f_model.f_model as f_model_module
import mmtbx.masks
from cctbx.xray.structure_factors.algorithm import Algorithm, algorithms
from libtbx.phil import tokenizer

from ..bulk_solvent import MASKS
from . import fmodel_hooks, masks, scaling
from .from_scatterers import from_scatterers_sfdiff
from .gradients import gradients_sfdiff
from .mask_classes import AroundAtoms, AtomMask, bulk_solvent_class
from .settings import MASK_PHIL, STRUCTURE_FACTOR_PHIL, Settings, usable_device
from .usage import report_at_exit_if_asked

NAME = "sfdiff"
_DESCRIPTION = "Differentiable structure factors and masks (mmtbx_sfdiff)"

_undo: list[Callable[[], object]] = []
_undo_scaling: list[Callable[[], object]] = []
_takeovers: list[Any] = []


def is_registered() -> bool:
    """Whether cctbx knows the algorithm ``sfdiff``."""
    return bool(_undo)


def register(scaling: Any = False) -> None:
    """Teach cctbx the algorithm ``sfdiff`` and its mask; what does not ask for them is not changed.

    Afterwards ``structure_factors_accuracy.algorithm=sfdiff`` (with ``extra.sfdiff``) and ``mask.algorithm=sfdiff``
    (with ``mask.sfdiff``) are known to every program that includes mmtbx's parameters.  Programs whose parameters
    were built earlier do not see them: register first.

    Parameters
    ----------
    scaling : bool
        Let this package's scaler do ``update_all_scales`` of every manager, by the same algorithm.

    Notes
    -----
    Calling it again changes nothing; :func:`unregister` takes everything back.  With ``MMTBX_SFDIFF_REPORT=1`` in the
    environment the program says at its end how many calls were answered here, and how many by cctbx.

    Examples
    --------
    >>> sfdiff.register()
    >>> from cctbx.xray.structure_factors.algorithm import algorithms
    >>> "sfdiff" in algorithms
    True
    >>> sfdiff.unregister()
    """
    report_at_exit_if_asked()
    if not _undo:
        _undo.append(
            _set_item(algorithms, NAME, Algorithm(NAME, _DESCRIPTION, from_scatterers_sfdiff, gradients_sfdiff))
        )
        _undo.append(_add_phil_word(f_model_module.sf_and_grads_accuracy_master_params, "algorithm", NAME))
        _undo.append(
            _add_phil(
                f_model_module.sf_and_grads_accuracy_master_params,
                f"extra {{\n {NAME} {{\n{STRUCTURE_FACTOR_PHIL}\n}}\n}}",
            )
        )
        _undo.append(_add_phil(mmtbx.masks.mask_master_params, MASK_PHIL))
        _undo.append(_hook_compute_f_mask())
        _undo.append(_hook_gradients())
        _undo.append(_hook_update_xray_structure())
    if scaling and not _undo_scaling:
        _undo_scaling.append(_hook_update_all_scales())


def unregister() -> None:
    """Take back everything that :func:`register` changed.

    Raises
    ------
    RuntimeError
        Inside :func:`takeover`.

    Examples
    --------
    >>> sfdiff.register()
    >>> sfdiff.unregister()
    >>> from cctbx.xray.structure_factors.algorithm import algorithms
    >>> "sfdiff" in algorithms
    False
    """
    if _takeovers:
        raise RuntimeError("mmtbx_sfdiff cannot be unregistered inside takeover(): leave that first.")
    for undo in (_undo_scaling, _undo):
        while undo:
            undo.pop()()


def takeover(
    method: str = "auto",
    accuracy: float = 1e-4,
    device: str = "cpu",
    mask: Any = "binary",
    mask_gradient: bool = True,
    scaling: Any = False,
) -> contextlib.AbstractContextManager[Any]:
    """Send every F_calc, gradient and mask that cctbx computes through this package, while the context lasts.

    What a script asks for keeps its meaning: ``direct`` is exact, ``fft`` becomes as accurate as said here, and
    masks are cctbx's own bit for bit unless another one is asked for.  The entry points that stay with cctbx are
    listed in :data:`.entry_points.ENTRY_POINTS`.

    Parameters
    ----------
    method : {"auto", "fft", "direct"}
        What ``fft`` and an unnamed algorithm stand for.
    accuracy : float
    device : str
    mask : {"binary", "probe_shrink", "density_cutoff"}
        The mask of ``mmtbx.masks.manager``.  With a differentiable one the gradient of the sites contains the mask's.
    mask_gradient : bool
    scaling : bool
        Also ``update_all_scales``, see :func:`register`.

    Returns
    -------
    context manager

    Raises
    ------
    ValueError
        An unknown method or mask; an accuracy that is not between 0 and 1.
    libtbx.utils.Sorry
        A device that is not there.

    Examples
    --------
    >>> structure = atoms.to_cctbx()
    >>> with sfdiff.takeover(accuracy=1e-6):
    ...     f_calc = structure.structure_factors(d_min=2.2).f_calc()
    >>> exact = sfdiff.structure_factors(atoms, crystal, f_calc, method="direct")
    >>> float((torch.from_numpy(f_calc.data().as_numpy_array()) - exact).norm() / exact.norm()) < 1e-6
    True
    """
    if mask not in MASKS:
        raise ValueError(f"Unknown mask {mask!r}: choose from {', '.join(MASKS)}.")
    usable_device(device, "device")
    by_fft = Settings(method=method, accuracy=accuracy, device=device, mask_gradient=mask_gradient)
    direct = Settings(method="direct", device=device, mask_gradient=mask_gradient)
    return _taken_over(by_fft, direct, mask, scaling)


@contextlib.contextmanager
def _taken_over(by_fft: Settings, direct: Settings, mask: Any, scaling: Any) -> Iterator[None]:
    was_registered, had_scaling = is_registered(), bool(_undo_scaling)
    register(scaling=scaling)
    undo = []
    by_name = {"fft": by_fft, "direct": direct}
    _takeovers.append((by_name, mask))
    try:
        for name, settings in by_name.items():
            undo.append(
                _set_item(
                    algorithms,
                    name,
                    Algorithm(
                        name,
                        algorithms[name].desc,
                        functools.partial(from_scatterers_sfdiff, settings=settings),
                        functools.partial(gradients_sfdiff, settings=settings, algorithm=name),
                    ),
                )
            )
        # miller.set.structure_factors_from_scatterers calls direct summation without looking at the table.
        for name, function in (
            ("from_scatterers_direct", _direct_by(direct)),
            ("from_scatterers_fft", algorithms["fft"].from_scatterers),
            ("gradients_direct", _direct_gradients_by(direct)),
            ("gradients_fft", algorithms["fft"].gradients),
        ):
            undo.append(_set_attribute(xray_structure_factors, name, function))
        for name, replacement in (
            ("atom_mask", AtomMask),
            ("around_atoms", AroundAtoms),
            ("bulk_solvent", bulk_solvent_class()),
        ):
            undo.append(_set_attribute(mmtbx.masks, name, replacement))
        yield
    finally:
        while undo:
            undo.pop()()
        _takeovers.pop()
        if not had_scaling:
            while _undo_scaling:
                _undo_scaling.pop()()
        if not was_registered and not _takeovers:
            unregister()


def _direct_by(settings: Any) -> Callable[..., Any]:
    def from_scatterers_direct(
        xray_structure: Any,
        miller_set: Any,
        manager: Any = None,
        cos_sin_table: bool = False,
        algorithm: str = "direct",
        extra_params: Any = None,
    ) -> Any:
        return from_scatterers_sfdiff(
            manager=manager,
            xray_structure=xray_structure,
            miller_set=miller_set,
            algorithm="direct",
            extra_params=extra_params,
            settings=settings,
        )

    return from_scatterers_direct


def _direct_gradients_by(settings: Any) -> Callable[..., Any]:
    def gradients_direct(
        xray_structure: Any,
        u_iso_refinable_params: Any,
        miller_set: Any,
        d_target_d_f_calc: Any,
        n_parameters: Any,
        manager: Any = None,
        cos_sin_table: bool = False,
        extra_params: Any = None,
    ) -> Any:
        return gradients_sfdiff(
            manager=manager,
            xray_structure=xray_structure,
            u_iso_refinable_params=u_iso_refinable_params,
            miller_set=miller_set,
            d_target_d_f_calc=d_target_d_f_calc,
            n_parameters=n_parameters,
            extra_params=extra_params,
            settings=settings,
            algorithm="direct",
        )

    return gradients_direct


# Hooks.  Each wraps what it finds, so that another package's hook stays in place.


def _hook_compute_f_mask() -> Callable[..., Any]:
    original = mmtbx.masks.manager.compute_f_mask

    @functools.wraps(original)
    def compute_f_mask(self: Any) -> Any:
        params = _mask_params_in_force(self.mask_params)
        return masks.compute_f_mask(self, params) if masks.wants_sfdiff(params) else original(self)

    return _set_attribute(mmtbx.masks.manager, "compute_f_mask", compute_f_mask)


def _settings_in_force(manager: Any) -> Settings | None:
    return fmodel_hooks.settings_of(manager, _takeovers[-1][0] if _takeovers else {})


def _mask_params_in_force(mask_params: Any) -> Any:
    """The parameters themselves, or under :func:`takeover` with another mask than cctbx's, a copy asking for that."""
    if not _takeovers or _takeovers[-1][1] == "binary" or masks.wants_sfdiff(mask_params):
        return mask_params
    if mask_params.n_radial_shells > 1:
        return mask_params
    by_name, mask = _takeovers[-1]
    chosen = mmtbx.masks.mask_master_params.extract()
    chosen.__dict__.update(
        {name: value for name, value in mask_params.__dict__.items() if name not in ("algorithm", "sfdiff")}
    )
    chosen.algorithm = NAME
    chosen.sfdiff.method = mask
    chosen.sfdiff.device = by_name["fft"].device
    return chosen


def _hook_gradients() -> Callable[..., Any]:
    manager_class = f_model_module.manager
    original = manager_class.__dict__["structure_factor_gradients_w"]

    def structure_factor_gradients_w(self: Any) -> Any:
        inner = original.fget(self)
        settings = _settings_in_force(self)
        mask_params = _mask_params_in_force(self.mask_params)
        if not fmodel_hooks.follows_mask(self, mask_params, settings):
            return inner
        return fmodel_hooks.gradients_with_mask(self, inner, mask_params, settings)

    return _set_attribute(manager_class, "structure_factor_gradients_w", property(structure_factor_gradients_w))


def _hook_update_xray_structure() -> Callable[..., Any]:
    original = f_model_module.manager.update_xray_structure

    @functools.wraps(original)
    def update_xray_structure(
        self: Any,
        xray_structure: Any = None,
        update_f_calc: bool = False,
        update_f_mask: bool = False,
        force_update_f_mask: bool = False,
    ) -> Any:
        if (
            update_f_calc
            and self.arrays is not None
            and fmodel_hooks.follows_mask(self, _mask_params_in_force(self.mask_params), _settings_in_force(self))
        ):
            update_f_mask = True
            force_update_f_mask = force_update_f_mask or fmodel_hooks.mask_is_behind(self, xray_structure)
        return original(
            self,
            xray_structure=xray_structure,
            update_f_calc=update_f_calc,
            update_f_mask=update_f_mask,
            force_update_f_mask=force_update_f_mask,
        )

    return _set_attribute(f_model_module.manager, "update_xray_structure", update_xray_structure)


def _hook_update_all_scales() -> Callable[..., Any]:
    original = f_model_module.manager.update_all_scales

    @functools.wraps(original)
    def update_all_scales(
        self: Any,
        update_f_part1: bool = True,
        apply_back_trace: bool = False,
        params: Any = None,
        nproc: Any = None,
        cycles: Any = None,
        fast: bool = True,
        optimize_mask: bool = False,
        refine_hd_scattering: bool = True,
        refine_hd_scattering_method: str = "fast",
        bulk_solvent_and_scaling: bool = True,
        remove_outliers: bool = True,
        apply_scale_k1_to_f_obs: bool = True,
        show: bool = False,
        verbose: Any = None,
        log: Any = None,
    ) -> Any:
        if not scaling.can_scale(self, apply_back_trace, fast, params):
            return original(
                self,
                update_f_part1=update_f_part1,
                apply_back_trace=apply_back_trace,
                params=params,
                nproc=nproc,
                cycles=cycles,
                fast=fast,
                optimize_mask=optimize_mask,
                refine_hd_scattering=refine_hd_scattering,
                refine_hd_scattering_method=refine_hd_scattering_method,
                bulk_solvent_and_scaling=bulk_solvent_and_scaling,
                remove_outliers=remove_outliers,
                apply_scale_k1_to_f_obs=apply_scale_k1_to_f_obs,
                show=show,
                verbose=verbose,
                log=log,
            )
        return scaling.update_all_scales(
            self,
            params=params,
            optimize_mask=optimize_mask,
            refine_hd_scattering=refine_hd_scattering,
            remove_outliers=remove_outliers,
            apply_scale_k1_to_f_obs=apply_scale_k1_to_f_obs,
            log=log,
        )

    return _set_attribute(f_model_module.manager, "update_all_scales", update_all_scales)


# Changes and how to take them back.

_MISSING = object()


def _set_item(table: dict[Any, Any], key: Any, value: Any) -> Callable[..., Any]:
    before = table.get(key, _MISSING)
    table[key] = value

    def undo() -> None:
        if before is _MISSING:
            table.pop(key, None)
        else:
            table[key] = before

    return undo


def _set_attribute(owner: Any, name: str, value: Any) -> Callable[..., Any]:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _add_phil_word(scope: Any, name: str, word: str) -> Callable[..., Any]:
    definition = next(obj for obj in scope.objects if obj.name == name)
    before = list(definition.words)
    definition.words = before + [tokenizer.word(word)]

    def undo() -> None:
        definition.words = before

    return undo


def _add_phil(scope: Any, text: str) -> Callable[..., Any]:
    """Add definitions, and scopes to scopes of the same name."""
    undo = []
    for new in iotbx.phil.parse(text).objects:
        old = next((obj for obj in scope.objects if obj.name == new.name), None)
        target, additions = (scope, [new]) if old is None else (old, new.objects)
        for addition in additions:
            addition.primary_parent_scope = target
            target.objects.append(addition)
            undo.append((target, addition))

    def take_back() -> None:
        for target, addition in undo:
            target.objects.remove(addition)

    return take_back
