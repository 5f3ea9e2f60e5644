"""Which entries: from the RCSB's search service, a list, a folder, or a manifest.

A list is a text file: one identifier to a line, what follows ``#`` is a comment.  The query is the JSON of
version 2 of the search service (https://search.rcsb.org); the attributes are those that cctbx asks for too
(``mmtbx.wwpdb.rcsb_web_services``).
"""

from __future__ import annotations

import csv
import datetime
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from pathlib import Path

from mmtbx_sfdiff.files import is_entry_id, normalize_entry_id, write_all

from libtbx.utils import Sorry

URL = "https://search.rcsb.org/rcsbsearch/v2/query"
N_PAPER = 907
_RETRIES, _BACKOFF = 3, 1.0
_TIMEOUT = 120.0
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


def query(d_min=None, d_max=None, min_atoms=None, max_atoms=None, after=None, before=None):
    """The search for X-ray entries with deposited structure factors.

    Parameters
    ----------
    d_min, d_max : float, optional
        Resolution between these, Å.
    min_atoms, max_atoms : int, optional
        Deposited atoms.
    after, before : str, optional
        Released between these dates (YYYY-MM-DD), both included.

    Returns
    -------
    dict
    """

    def terminal(attribute, operator, value):
        return {
            "type": "terminal",
            "service": "text",
            "parameters": {"attribute": attribute, "operator": operator, "value": value},
        }

    nodes = [
        terminal("exptl.method", "exact_match", "X-RAY DIFFRACTION"),
        terminal("rcsb_accession_info.has_released_experimental_data", "exact_match", "Y"),
    ]
    for attribute, lower, upper in (
        ("rcsb_entry_info.resolution_combined", d_min, d_max),
        ("rcsb_entry_info.deposited_atom_count", min_atoms, max_atoms),
        ("rcsb_accession_info.initial_release_date", after, before),
    ):
        nodes += [
            terminal(attribute, operator, value)
            for operator, value in (("greater_or_equal", lower), ("less_or_equal", upper))
            if value is not None
        ]
    return {
        "query": {"type": "group", "logical_operator": "and", "nodes": nodes},
        "return_type": "entry",
        "request_options": {"return_all_hits": True, "results_content_type": ["experimental"]},
    }


def search(body, url=URL, timeout=_TIMEOUT, backoff=_BACKOFF):
    """Identifiers of all entries that a query finds, sorted.

    Raises
    ------
    libtbx.utils.Sorry
        When the service cannot be reached or answers something else.
    """
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        method="POST",
        headers={"Content-Type": "application/json", "User-Agent": "mmtbx_sfdiff"},
    )
    for attempt in range(_RETRIES + 1):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                # 204, without content, says that nothing was found.
                nothing = response.status == http.client.NO_CONTENT
                content = b'{"result_set": []}' if nothing else response.read()
            break
        except urllib.error.HTTPError as error:
            reason, again = f"answered {error.code}: {_said(error)}", error.code in _AGAIN
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason, again = f"cannot be reached ({getattr(error, 'reason', error)})", True
        except ValueError as error:
            raise Sorry(f"{url} is not an address of a search service ({error}): correct --url.") from None
        if not again or attempt == _RETRIES:
            raise Sorry(
                f"The search service {url} {reason}. Try again later, or take a list of entries instead."
            ) from None
        time.sleep(backoff * 2**attempt)
    try:
        hits = json.loads(content)["result_set"]
        return sorted({normalize_entry_id(hit if isinstance(hit, str) else hit["identifier"]) for hit in hits})
    except (ValueError, KeyError, TypeError, Sorry):
        start = " ".join(content[:60].decode(errors="replace").split())
        raise Sorry(
            f"The search service {url} sent something other than a list of entries ({start!r}): correct --url."
        ) from None


def _said(error):
    try:
        return " ".join(json.loads(error.read())["message"].split())[:200]
    except (ValueError, KeyError, TypeError, OSError, AttributeError):
        return error.reason


def read(source):
    """(identifiers, folder of the entries or None) of a list, a folder, a manifest, or an identifier itself.

    Raises
    ------
    libtbx.utils.Sorry
    """
    path = Path(source)
    if path.is_dir():
        manifest = path / "MANIFEST.tsv"
        names = (
            _manifest(manifest)
            if manifest.is_file()
            else sorted(child.name for child in path.iterdir() if child.is_dir() and is_entry_id(child.name))
        )
        folder = path.resolve()
    elif path.is_file():
        tabular = path.suffix == ".tsv"
        names, folder = (_manifest(path), path.resolve().parent) if tabular else (_list(path), None)
    elif is_entry_id(str(source)):
        names, folder = [str(source)], None
    else:
        raise Sorry(f"{source} is neither a list, a folder of entries, a manifest (.tsv), nor an identifier: check it.")
    entries = list(dict.fromkeys(map(normalize_entry_id, names)))
    if not entries:
        raise Sorry(
            f"There is no entry in {source}: a list has one identifier to a line, a folder one folder for each entry."
        )
    return entries, folder


def _list(path):
    names = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Sorry(f"Cannot read the list {path} ({error}): give a text file with one identifier to a line.") from None
    for number, line in enumerate(lines, 1):
        word = line.split("#")[0].strip()
        if word and not is_entry_id(word):
            raise Sorry(f"Line {number} of {path}, {word!r}, is not a PDB entry: correct it, or put # before it.")
        names += [word] if word else []
    return names


def _manifest(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if rows and "entry" not in rows[0]:
        raise Sorry(f"{path} has no column 'entry': give a manifest that has one, or a list.")
    return [row["entry"] for row in rows]


def sample(entries, n, seed):
    """n of the entries at random, in the order given; the same for the same seed."""
    if n is None or n >= len(entries):
        return list(entries)
    chosen = set(random.Random(seed).sample(sorted(entries), n))
    return [entry for entry in entries if entry in chosen]


def run(options):
    """``python -m validation select``."""
    if options.source:
        entries, _ = read(options.source)
        origin = [f"from {os.path.abspath(options.source) if os.path.exists(options.source) else options.source}"]
    else:
        body = query(options.d_min, options.d_max, options.min_atoms, options.max_atoms, options.after, options.before)
        entries = search(body, options.url)
        origin = [f"from {options.url}", f"query {json.dumps(body)}"]
    if not entries:
        raise Sorry("No entry fulfils these conditions: widen them.")
    chosen = sample(entries, options.n, options.seed)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    comments = [f"{len(chosen)} of {len(entries)} entries, {now}", *origin, f"seed {options.seed}"]
    text = "".join(f"# {comment}\n" for comment in comments) + "".join(f"{entry}\n" for entry in chosen)
    out = Path(options.out)
    write_all({out: text.encode()})
    print(f"{out}: {len(chosen)} of {len(entries)} entries.")
    return 0


def add_options(parser):
    """The command line of ``select``."""
    parser.add_argument(
        "source", nargs="?", help="take them from this list, folder or manifest instead of the search service"
    )
    parser.add_argument("--out", default="entries.txt", help="the list to write (default: %(default)s)")
    parser.add_argument("--n", type=int, default=N_PAPER, help="so many, at random (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice (default: %(default)s)")
    parser.add_argument("--d-min", type=float, default=None, help="resolution of at least so many Å in number")
    parser.add_argument(
        "--d-max", type=float, default=3.5, help="resolution of at most so many Å in number (default: %(default)s)"
    )
    parser.add_argument("--min-atoms", type=int, default=None, help="deposited atoms, at least")
    parser.add_argument("--max-atoms", type=int, default=20000, help="deposited atoms, at most (default: %(default)s)")
    parser.add_argument("--after", metavar="DATE", default=None, help="released on this date (YYYY-MM-DD) or later")
    parser.add_argument("--before", metavar="DATE", default=None, help="released on this date (YYYY-MM-DD) or earlier")
    parser.add_argument("--url", default=URL, help="another server of the same search service")
    parser.set_defaults(run=run)
