"""The parameters of ``mmtbx_sfdiff.refine``."""

from __future__ import annotations

from ..refinement import Settings
from ..refinement.minimize import MINIMIZERS
from ..refinement.settings import ANISOTROPIC, MASK_UPDATES
from .common import (
    COMPUTING,
    DOWNLOAD,
    FORCE_FIELD_WEIGHT,
    INPUTS,
    LIMITS,
    RANDOM_SEED,
    REMOVE_OUTLIERS,
    TWINS,
    WAVELENGTH,
    choices,
)
from .refine_model import MODEL_PHIL
from .refine_restraints import PHIL

_DEFAULTS = Settings()
MASTER_PHIL = f"""
refine {{
  {INPUTS}
  {LIMITS}
  {TWINS}
  {WAVELENGTH}
  {PHIL}
  {MODEL_PHIL}
  target = *maximum_likelihood least_squares intensity_least_squares
    .type = choice
    .short_caption = Target
    .help = "What is minimised over the work set: -log likelihood of the amplitudes, or ((F_obs - |F_model|) / sigma)^2, \
            or the same of intensities."
  minimiser = {choices(MINIMIZERS, _DEFAULTS.minimiser)}
    .type = choice
    .short_caption = Minimiser
    .help = "L-BFGS with a strong Wolfe line search, or Adam."
  sites = True
    .type = bool
    .short_caption = Refine sites
    .help = "Hydrogens ride on the atom that they are bonded to; special positions are kept."
  adp = True
    .type = bool
    .short_caption = Refine displacement parameters
    .help = "See adp_model."
  anisotropic = {choices(ANISOTROPIC, _DEFAULTS.anisotropic)}
    .type = choice
    .short_caption = Anisotropic atoms
    .help = "free: six variables each. scaled: the shape of the tensor stays, its size is refined. auto: free where the data reach \
            1.55 Å and are at least 1.8 times as many as the variables."
  cycles = {_DEFAULTS.cycles}
    .type = int
    .short_caption = Macro-cycles
    .help = "At most; each determines scales (and the mask) anew."
  steps = {_DEFAULTS.steps}
    .type = int
    .short_caption = Steps of a cycle
    .help = "Of the minimiser in each macro-cycle, at most."
  first_d_min = {_DEFAULTS.first_d_min}
    .type = float
    .short_caption = Resolution limit of the first cycle
    .help = "Of the first macro-cycle, Å (as far as there are enough reflections)."
  resolution_cycles = {_DEFAULTS.resolution_cycles}
    .type = int
    .short_caption = Resolution cycles
    .help = "In how many macro-cycles the limit reaches that of the data; 1 takes all data at once."
  adp_from_cycle = {_DEFAULTS.adp_from_cycle}
    .type = int
    .short_caption = First cycle of displacement parameters
    .help = "Macro-cycle in which displacement parameters are first refined."
  least_squares_cycles = {_DEFAULTS.least_squares_cycles}
    .type = int
    .short_caption = Cycles of least squares
    .help = "How many macro-cycles at the end are by least squares."
  mask_update = {choices(MASK_UPDATES, _DEFAULTS.mask_update)}
    .type = choice
    .short_caption = Mask update
    .help = "step: the mask follows every step and its gradient counts. cycle: it is held fixed within a macro-cycle. \
            auto: step, for masks that have a gradient."
  damping = Auto
    .type = float
    .short_caption = Damping
    .help = "Springs that hold shifts back within a macro-cycle, as a share of the curvature of the data. \
            Auto: 0 with restraints of the geometry, 0.5 without."
  learning_rate = {_DEFAULTS.learning_rate:g}
    .type = float
    .short_caption = Learning rate of Adam
    .help = "Of Adam, Å."
  tolerance = {_DEFAULTS.tolerance:g}
    .type = float
    .short_caption = Tolerance
    .help = "Refinement ends when a macro-cycle lowers the target of the work set by less: natural logarithms for each \
            reflection, or a fraction of the sum of squares. The free set does not count."
  {FORCE_FIELD_WEIGHT}
  {REMOVE_OUTLIERS}
  shake = None
    .type = float
    .short_caption = Random shifts
    .help = "Shift sites at random before refinement, by so many Å (root mean square), to try what is recovered."
  {RANDOM_SEED}
  resume = True
    .type = bool
    .short_caption = Resume
    .help = "Go on from the last macro-cycle of the same refinement, if it was interrupted."
  {COMPUTING}
  {DOWNLOAD}
}}
output {{
  directory = .
    .type = str
    .short_caption = Output folder
    .help = "Where <prefix>_refined.pdb or .cif, .mtz, .json, .html and .png are written."
  model_format = *auto pdb mmcif
    .type = choice
    .short_caption = Model format
    .help = "auto: that of the model given, or mmCIF where PDB cannot hold it."
  mtz_labels = *ccp4 phenix
    .type = choice
    .short_caption = Column labels
    .help = "ccp4: F, SIGF, FREE, FC, PHIC, FWT, PHWT, DELFWT, PHDELWT, FAN, PHAN. phenix: F-obs-filtered, R-free-flags, F-model, 2FOFCWT, \
            PH2FOFCWT, FOFCWT, PHFOFCWT. Coot opens the maps of both by itself."
  flag_style = *phenix ccp4
    .type = choice
    .short_caption = Style of new flags
    .help = "Of the file that new free flags are written to. phenix: R-free-flags, 1 for the test set, 0 for others. \
            ccp4: FreeR_flag from 0 up, 0 for the test set."
  report = True
    .type = bool
    .short_caption = Write report
    .help = "Write a report as one HTML page."
  figure = True
    .type = bool
    .short_caption = Write figure
    .help = "Write R factors and target against the step as PNG."
}}
"""
