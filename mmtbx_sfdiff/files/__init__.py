"""Finding, downloading and reading the model and the data of an entry."""

from .alphafold import find_predicted_model, normalise_accession
from .data import Data, data_symmetry, read_data
from .entry import Entry, load_entry
from .entry_id import is_entry_id, normalise_entry_id
from .fetch import (
    SERVERS,
    EntryFiles,
    NotDeposited,
    Timeouts,
    Unreachable,
    cache_folder,
    find_entry,
)
from .model import SCATTERING_TABLES, Model, read_model
from .writing import DISK_FULL, DiskFull, check_writable, write_all

__all__ = [
    "DISK_FULL",
    "Data",
    "DiskFull",
    "Entry",
    "EntryFiles",
    "Model",
    "NotDeposited",
    "SCATTERING_TABLES",
    "SERVERS",
    "Timeouts",
    "Unreachable",
    "cache_folder",
    "check_writable",
    "data_symmetry",
    "find_entry",
    "find_predicted_model",
    "is_entry_id",
    "load_entry",
    "normalise_accession",
    "normalise_entry_id",
    "read_data",
    "read_model",
    "write_all",
]
