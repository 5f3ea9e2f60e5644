"""The parameters of ``mmtbx_sfdiff.fmodel``."""

from __future__ import annotations

from .common import COMPUTING, DOWNLOAD, INPUTS, RANDOM_SEED, REMOVE_OUTLIERS, TWINS, WAVELENGTH

PHIL = f"""
fmodel {{
  {INPUTS}
  high_resolution = None
    .type = float
    .short_caption = High resolution limit
    .help = "Structure factors to this resolution, Å; needed without data, by default that of the data."
  low_resolution = None
    .type = float
    .short_caption = Low resolution limit
    .help = "Reflections with larger d-spacings (Å) are left out."
  {WAVELENGTH}
  scales = *auto mmtbx exponential given
    .type = choice
    .short_caption = Scales
    .help = "mmtbx: bulk-solvent and overall scales from the data, as update_all_scales determines them. \
            exponential: one k_sol, B_sol, scale and tensor from the data. given: those below. \
            auto: mmtbx with data, given without."
  {REMOVE_OUTLIERS}
  scale = 1.0
    .type = float
    .short_caption = Overall scale
    .help = "With scales=given."
  k_sol = 0.0
    .type = float
    .short_caption = k_sol
    .help = "Density of the solvent, e/Å^3, with scales=given; 0.35 is typical, 0 leaves the solvent out."
  b_sol = 0.0
    .type = float
    .short_caption = B_sol
    .help = "Of the solvent, Å^2, with scales=given; 50 is typical."
  b_cart = 0 0 0 0 0 0
    .type = floats(size=6)
    .short_caption = Anisotropic scale
    .help = "B11 B22 B33 B12 B13 B23 of the anisotropic scale, Å^2, with scales=given."
  add_sigmas = False
    .type = bool
    .short_caption = Add sigmas
    .help = "Add standard deviations of 1, for programs that need that column."
  add_random_error_to_amplitudes_percent = None
    .type = float
    .short_caption = Random error
    .help = "Change each amplitude by so many percent, up or down at random."
  r_free_flags_fraction = None
    .type = float
    .short_caption = Fraction of free flags
    .expert_level = 3
    .help = "Older name of r_free_flags.fraction, with r_free_flags.generate=True."
  {RANDOM_SEED}
  {TWINS}
  {COMPUTING}
  {DOWNLOAD}
}}
output {{
  directory = .
    .type = str
    .short_caption = Output folder
    .help = "Where <prefix>_fmodel.mtz is written."
  label = FMODEL
    .type = str
    .short_caption = Label
    .help = "Column of the amplitudes; phases are PHI<label>."
  type = *complex amplitudes intensities
    .type = choice
    .short_caption = Kind of values
    .help = "Amplitudes and phases, amplitudes alone, or intensities."
  maps = True
    .type = bool
    .short_caption = Map coefficients
    .help = "With scales from data, add 2mFo-DFc and mFo-DFc in columns that Coot opens by itself."
  components = False
    .type = bool
    .short_caption = Components
    .help = "Add FCALC, FMASK, KMASK and KTOTAL: FMODEL = KTOTAL (FCALC + KMASK FMASK) without riding hydrogens."
}}
"""
