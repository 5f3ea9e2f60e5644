"""Another program's *F*, steps and batches, in a process of its own: see :mod:`.gpu_peers`, which starts it.

``python -m validation.studies.gpu_peers_worker sfcalculator|torchref DEVICE`` imports nothing of this project but a clock.  A line of JSON
on standard input asks for an entry; numbers come back as lines of JSON, each as soon as it is there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
import traceback

import torch

import numpy as np

from .gpu_common import Clock, OutOfTime, relative, seed_of

B_OVER_U = 8 * np.pi**2


def structure_of(entry):
    """The atoms of an entry as gemmi's, each a residue of its own."""
    import gemmi

    structure, model, chain = gemmi.Structure(), gemmi.Model("1"), gemmi.Chain("A")
    structure.cell = gemmi.UnitCell(*entry["unit_cell"].tolist())
    structure.spacegroup_hm = str(entry["space_group"])
    for number, (kind, site, b, u, occupancy) in enumerate(
        zip(entry["types"], entry["sites_cart"], entry["b_iso"], entry["u_cart"], entry["occupancies"]), 1
    ):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "UNL", gemmi.SeqId(str(number))
        atom.element = gemmi.Element(str(kind).rstrip("+-0123456789"))
        atom.name, atom.pos, atom.occ = atom.element.name.upper(), gemmi.Position(*site), occupancy
        atom.b_iso = b if np.isfinite(b) else B_OVER_U * u[:3].mean()
        if np.isfinite(u).all():
            atom.aniso = gemmi.SMat33f(*u)
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    return structure


class SFcalculator:
    """Direct summation; a mask from the density, differentiable; its batch shares displacements."""

    package = "SFcalculator_torch"
    says = "direct summation; the step with its own mask and that mask's gradient; a batch of sites alone"

    def __init__(self, entry, device):
        import reciprocalspaceship as rs
        from SFC_Torch import PDBParser
        from SFC_Torch import SFcalculator as Published

        structure = structure_of(entry)
        data = rs.DataSet(
            {
                **dict(zip("HKL", entry["miller_indices"].T)),
                "FP": entry["f_obs"],
                "SIGFP": entry["sigmas"],
                "FreeR_flag": entry["free"].astype(int),
            },
            cell=structure.cell,
            spacegroup=structure.spacegroup_hm,
        ).set_index(["H", "K", "L"])
        data = data.astype({"FP": "F", "SIGFP": "Q", "FreeR_flag": "I"})
        self.it = Published(PDBParser(structure), data, device=device, testset_value=1)
        if not np.array_equal(self.it.HKL_array, entry["miller_indices"]):
            raise ValueError("its reflections are others than those asked for")
        self.f_obs = self.it.Fo

    def f(self, x, u):
        return self.it.calc_fprotein(atoms_position_tensor=x, atoms_biso_tensor=B_OVER_U * u, Return=True)

    def batch(self, x, u):
        return self.it.calc_fprotein_batch(x, Return=True), [x]

    def prepare_step(self):
        self.it.inspect_data()
        self.it.calc_fprotein()
        self.it.calc_fsolvent()
        self.it.init_scales(requires_grad=False)

    def step(self, x, u):
        self.f(x, u)
        self.it.calc_fsolvent()
        target = (self.it.calc_ftotal().abs() - self.f_obs).square().sum()
        return torch.autograd.grad(target, [x, u])


class TorchRef:
    """FFT of a sampled density; a mask that is not differentiated; no batch."""

    package = "torchref"
    says = "FFT; the step makes its mask anew, without its gradient; no batches"
    batch = None

    def __init__(self, entry, device):
        import torchref
        from torchref.io import ReflectionData
        from torchref.model.model_ft import ModelFT

        torchref.device.current = device
        cell = structure_of(entry).cell
        self.hkl = torch.as_tensor(entry["miller_indices"].astype(np.int32), device=device)
        d_min = float(cell.calculate_d_array(entry["miller_indices"]).min())
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.pdb")
            structure_of(entry).write_pdb(path)
            self.model = ModelFT(max_res=d_min, verbose=0, device=device).load_pdb(path)
        here = torch.as_tensor(entry["sites_cart"], dtype=torch.float32, device=device)
        if self.model.xyz().shape != here.shape or float((self.model.xyz().detach() - here).abs().max()) > 2e-3:
            raise ValueError("its atoms are others, or in another order, than those asked for")
        aniso = np.isfinite(entry["u_cart"]).all(1)
        self.iso, self.aniso = (torch.as_tensor(np.flatnonzero(x), device=device) for x in (~aniso, aniso))
        self.u_cart = torch.as_tensor(entry["u_cart"][aniso], dtype=torch.float32, device=device)
        self.occupancies = torch.as_tensor(entry["occupancies"], dtype=torch.float32, device=device)
        self.tables = self.model.get_scattering_params_iso(), self.model.get_scattering_params_aniso()
        f_obs, sigmas = (torch.as_tensor(entry[x], dtype=torch.float32, device=device) for x in ("f_obs", "sigmas"))
        work = torch.as_tensor(~entry["free"], device=device)
        self.data = ReflectionData.from_tensors(
            self.hkl, f_obs, sigmas, self.model.cell, self.model.spacegroup, work, device=device, verbose=0
        )

    def f(self, x, u):
        iso = x[self.iso], B_OVER_U * u[self.iso], self.occupancies[self.iso], *self.tables[0]
        aniso = x[self.aniso], self.u_cart, self.occupancies[self.aniso], *self.tables[1]
        return self.model.fft.compute_structure_factors(self.hkl, *iso, *(aniso if len(self.aniso) else ()))[0]

    def prepare_step(self):
        from torchref.refinement.targets.xray.least_squares import LeastSquaresXrayTarget
        from torchref.scaling.scaler import Scaler

        self.scaler = Scaler(self.model, self.data, verbose=0)
        self.scaler.initialize()
        for parameter in self.scaler.parameters():
            parameter.requires_grad_(False)
        self.target = LeastSquaresXrayTarget(self.data, self.model, self.scaler)

    def step(self, x, u):
        """Of its own model, the sites and B of which are its parameters."""
        self.model.zero_grad()
        self.scaler.update_solvent()
        self.target(fcalc=self.data.structure_factors(self.model, cached=False)).backward()


PEERS = {"sfcalculator": SFcalculator, "torchref": TorchRef}


def measure(peer, question, device, put):
    """Numbers of an entry, each put down as soon as it is there."""
    entry = dict(np.load(question["entry"]))
    until = time.monotonic() + question["seconds"]
    clock = Clock(device, question["repeat"], until, question["warm"])
    began = time.perf_counter()
    it = peer(entry, device)
    put(prepare_ms=1e3 * (time.perf_counter() - began))
    x = torch.as_tensor(entry["sites_cart"], dtype=torch.float32, device=device)
    u = np.where(np.isfinite(entry["b_iso"]), entry["b_iso"], 0) / B_OVER_U
    wanted = [x.requires_grad_(), torch.as_tensor(u, dtype=torch.float32, device=device).requires_grad_()]
    seed = seed_of(len(entry["f_obs"]), device)

    def f_gradients():
        f = it.f(*wanted)
        return f, torch.autograd.grad(f, wanted, seed.to(f.dtype))

    def f():
        with torch.no_grad():
            it.f(*wanted)

    put(f=clock(f))
    put(f_gradients=clock(f_gradients))
    found = f_gradients()
    if question["reference"] is not None:
        exact = {key: torch.as_tensor(value, device=device) for key, value in np.load(question["reference"]).items()}
        errors = [relative(a.detach(), exact[key]) for a, key in zip(found[1], ("sites", "u_iso"))]
        put(f_error=relative(found[0].detach(), exact["f"]), gradient_errors=errors)
    again = f_gradients()
    put(same_bits=all(torch.equal(a, b) for a, b in zip((found[0], *found[1]), (again[0], *again[1]))))

    def steps():
        it.prepare_step()
        put(step=clock(lambda: it.step(*wanted)))

    def batch():
        noise = torch.randn((question["batch"], *x.shape), generator=torch.Generator().manual_seed(0)).to(device)
        many = (x.detach() + 0.1 * noise).requires_grad_()

        def call():
            f, leaves = it.batch(many, wanted[1])
            torch.autograd.grad(f, leaves, seed.to(f.dtype).expand(f.shape))

        put(batch_f_gradients=clock(call) / question["batch"])

    # What one of them cannot do is no reason to leave out the other.
    for name, part in (("step", steps), ("batch", batch)):
        if name == "batch" and (it.batch is None or not question["batch"]):
            continue
        try:
            part()
        except OutOfTime:
            raise
        except Exception as error:
            put(**{f"{name}_error": said(error)})
    if device.type == "cuda":
        put(peak_mib=torch.cuda.max_memory_allocated() / 2**20)


def said(error):
    """An error in a line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def main():
    name, device = sys.argv[1], torch.device(sys.argv[2])
    # What packages print is not for who asks.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def put(**numbers):
        print(json.dumps(numbers), file=out, flush=True)

    peer = PEERS[name]
    try:
        version = importlib.metadata.version(peer.package)
        __import__({"sfcalculator": "SFC_Torch.Fmodel", "torchref": "torchref.model.model_ft"}[name])
    except Exception as error:
        put(error=f"cannot be imported: {said(error)}", ended=True)
        return 1
    put(version=version, says=peer.says, ended=True)
    for line in sys.stdin:
        try:
            measure(peer, json.loads(line), device, put)
            put(ended=True)
        except OutOfTime:
            put(error="out of time", ended=True)
        except Exception as error:
            traceback.print_exc()
            put(error=said(error), ended=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return 0


if __name__ == "__main__":
    sys.exit(main())
