"""The fused targets against those in torch's operations, in Triton's interpreter: ``python -m tests.kernels.amplitude_targets``."""

import functools

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import engines
from mmtbx_sfdiff.kernels.cuda import targets as kernels
from mmtbx_sfdiff.likelihood import on_device
from mmtbx_sfdiff.likelihood.alpha_beta import AlphaBeta

# The interpreter is slow by the operation, not by the number.
kernels._BLOCK = 128
ENGINE = engines.of_atoms(engines.engine("cpu", "triton"))


def data(crystal, dtype, n_zero=5):
    """Reflections, alpha and beta such that centric and acentric terms, weak and very strong ones, and what is left out occur."""
    indices = crystal.build_miller_indices(2.0)
    n, generator = len(indices), torch.Generator().manual_seed(0)

    def random(low, high):
        return torch.exp(torch.empty(n).uniform_(low, high, generator=generator)).to(dtype)

    f_obs, alpha, beta = random(-3, 6), random(-1, 0.2), random(-2, 9)
    f_obs[:n_zero], alpha[n_zero : 2 * n_zero], beta[2 * n_zero : 3 * n_zero] = 0, 0, 1e-4
    free = torch.arange(n) % 11 == 0
    reflections = sfdiff.Reflections.from_arrays(crystal, indices, f_obs, random(-2, 1), free)
    epsilons, centric = crystal.epsilons(indices).to(dtype), crystal.centric_flags(indices)
    assert 0.05 < float(centric.double().mean()) < 0.95
    model = torch.polar(random(-4, 6), torch.empty(n).uniform_(-3, 3, generator=generator).to(dtype))
    model[3 * n_zero : 4 * n_zero] = 0
    return reflections, AlphaBeta(alpha, beta, epsilons, centric), model


def both(reflections, alpha_beta, selection, k):
    """(name, in torch's operations, fused)."""
    w, f_obs = sfdiff.likelihood.targets.least_squares_constants(reflections, selection, k)
    tables = {
        "least_squares": on_device.least_squares_table(w, f_obs),
        "maximum_likelihood": on_device.likelihood_table(
            reflections,
            alpha_beta,
            *sfdiff.likelihood.targets.likelihood_counts(reflections, alpha_beta, selection),
            k,
        ),
    }
    more = {"least_squares": {}, "maximum_likelihood": {"alpha_beta": alpha_beta}}
    for name, table in tables.items():
        plain = functools.partial(
            getattr(sfdiff.targets, name), reflections, selection=selection, f_obs_scale=k, **more[name]
        )

        def fused(f, name=name, table=table, plain=plain):
            dtype = torch.promote_types(f.dtype.to_real(), reflections.f_obs.dtype)
            return on_device.amplitude_target(ENGINE, f, table, name == "maximum_likelihood", dtype, lambda x: plain(x))

        yield name, lambda f, plain=plain: plain(f), fused


def close(a, b, limit, what):
    error = float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300)
    assert error <= limit, (what, error)


def main():
    crystal = sfdiff.Crystal((14, 16, 18, 90, 90, 90), "P 21 21 2")
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        reflections, alpha_beta, model = data(crystal, dtype)
        selection = torch.arange(len(reflections)) % 13 != 0
        for name, plain, fused in both(reflections, alpha_beta, selection, 1.3):
            for given in (
                model,
                torch.stack([model, 1.01 * model, model.conj()]),
                model.real.clone(),
                model.repeat_interleave(2)[::2].conj(),
            ):
                f = given.detach().requires_grad_()
                x, y = plain(f), fused(f)
                assert x.shape == y.shape and x.dtype == y.dtype
                close(y.detach(), x.detach(), limit, name)
                seed = torch.linspace(1, 2, x.numel()).reshape(x.shape).to(x.dtype)
                (a,), (b,) = (torch.autograd.grad(v, f, seed) for v in (x, y))
                assert b.dtype == f.dtype
                close(b, a, limit, (name, "gradient"))
                # Bit for bit, and a model by itself as in its batch.
                again = fused(f)
                assert torch.equal(again, y) and torch.equal(torch.autograd.grad(again, f, seed)[0], b)
                if given.ndim == 2:
                    assert torch.equal(fused(given[0]), y[0])
                # The second derivative, by the operations that there are.
                found = []
                for function in (plain, fused):
                    (g,) = torch.autograd.grad(function(f), f, seed, create_graph=True)
                    found.append(torch.autograd.grad((g * g.detach().conj()).real.sum(), f)[0])
                close(found[1], found[0], limit, (name, "second derivative"))
            # What is no number is none in the result, and nowhere else in a batch.
            spoiled = torch.stack([model, model])
            spoiled[0, 60] = complex("nan")
            value = fused(spoiled)
            assert value[0].isnan() and torch.equal(value[1], fused(model)), name
    # Very small and very large numbers.
    reflections, alpha_beta, model = data(crystal, torch.float64)
    every = torch.ones_like(selection)
    for name, plain, fused in both(reflections, alpha_beta, every, 1.0):
        for scale in (1e-14, 1e-4, 1e7, 1e12):
            f = (scale * model).requires_grad_()
            close(fused(f).detach(), plain(f).detach(), 1e-12, (name, scale))
            (a,), (b,) = (torch.autograd.grad(function(f), f) for function in (plain, fused))
            # Near 0 a gradient of the likelihood is a difference of much larger terms.
            close(b, a, 1e-11 / min(1, scale), (name, scale, "gradient"))
    through_fmodel(crystal)
    print("passed")


def through_fmodel(crystal):
    """FModel.target takes the fused way, and follows its scales, alpha and beta, data and precision."""
    generator = torch.Generator().manual_seed(1)
    sites = torch.rand(12, 3, generator=generator).double() * 14
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O"] * 4, sites, b_iso=20.0)
    reflections, _, _ = data(crystal, torch.float64)
    f = sfdiff.structure_factors(atoms, crystal, reflections.miller_indices, method="direct").abs()
    noise = 1 + 0.2 * torch.rand(len(f), generator=generator).double()
    flags = torch.arange(len(f)) % 4 == 0
    reflections = sfdiff.Reflections.from_arrays(crystal, reflections.miller_indices, f * noise, 0.1 * f, flags)
    with engines.everywhere("cpu"):
        fmodel = sfdiff.FModel(atoms, reflections)
        fmodel.update_scales()
        f_model = fmodel.f_model()
        fmodel.alpha_beta()  # the interpreter is slow
    calls = []
    own = type(ENGINE).amplitude_target

    def counted(self, *args):
        calls.append(args)
        return own(self, *args)

    type(ENGINE).amplitude_target = counted
    try:
        with engines.everywhere("triton"):
            for name in ("least_squares", "maximum_likelihood"):
                for turn in range(3):
                    value, expected = fmodel.target(name, f_model=f_model), fmodel._plain_target(name, f_model)
                    assert len(calls) == 1, (name, turn)
                    assert abs(float(value / expected) - 1) < 1e-12, (name, turn, float(value), float(expected))
                    calls.clear()
                    if turn == 0:
                        fmodel._alpha_beta = AlphaBeta(
                            *(1.5 * x if x.dtype != torch.bool else x for x in vars(fmodel.alpha_beta()).values())
                        )
                    if turn == 1:
                        fmodel.reflections.f_obs.mul_(1.1)
            # In transforms of torch.func it is torch's operations.
            g = torch.func.grad(lambda x: fmodel.target(f_model=x))(f_model)
            assert not calls and torch.isfinite(g.real).all()
    finally:
        type(ENGINE).amplitude_target = own


if __name__ == "__main__":
    main()
