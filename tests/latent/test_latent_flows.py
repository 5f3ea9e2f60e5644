"""Flows, the generator and its training."""

import json
import math

import torch
from mmtbx_sfdiff.latent import (
    BoltzmannGenerator,
    LinearFlow,
    MixedTransform,
    OpenMMEnergy,
    RealNVP,
    SplineFlow,
    TorchAmber,
    TrainingSettings,
    calibrate,
    chiral_centres,
    frame_features,
    handedness,
    load_frames,
    run_md,
    train,
)
from mmtbx_sfdiff.latent.generator.flows import normal_log_density
from mmtbx_sfdiff.latent.generator.train import split_in_time

import pytest

from tests.support.latent_systems import dipeptide, dipeptide_system, protein, turned


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Half a thousand frames of alanine dipeptide at 300 K."""
    folder = run_md(
        dipeptide(),
        dipeptide_system(),
        tmp_path_factory.mktemp("md"),
        duration=40.0,
        frame_interval=0.08,
        chunk_frames=500,
    )
    return load_frames(folder)[0]


@pytest.fixture(scope="module")
def transform(frames):
    return MixedTransform.from_prepared(dipeptide(), dipeptide_system(), frames=frames.double())


def make_flow(kind, transform, frames, trained=True):
    x = frame_features(transform, frames)
    if kind == "linear":
        return LinearFlow.from_samples(x, 0.1, transform.kinds)
    if kind == "realnvp":
        flow = RealNVP(LinearFlow.from_samples(x, 0.1, transform.kinds), n_blocks=2, hidden=16)
    else:
        pytest.importorskip("normflows")
        flow = SplineFlow.from_samples(x, transform.kinds, spread=0.9, n_layers=2, hidden=16)
        assert len(flow.circular) > 0
    if trained:  # away from the identity
        generator = torch.Generator().manual_seed(0)
        for parameter in flow.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return flow


KINDS = ["linear", "realnvp", "spline"]


@pytest.mark.parametrize("kind", KINDS)
def test_flow_is_invertible_and_its_log_det_autograds(kind, transform, frames):
    flow = make_flow(kind, transform, frames)
    x = frame_features(transform, frames[::100])
    z, log_det = flow.encode(x)
    again, back = flow.decode(z)
    assert z.shape == x.shape and log_det.shape == x.shape[:-1]
    torch.testing.assert_close(again, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back, -log_det, rtol=0, atol=1e-7)
    for n in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v[None])[0][0], x[n])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[n], rtol=0, atol=1e-8)
    batch, _ = flow.encode(x.reshape(1, *x.shape))
    torch.testing.assert_close(batch[0], z, rtol=0, atol=1e-12)
    one, _ = flow.encode(x[0])
    torch.testing.assert_close(one, z[0], rtol=0, atol=1e-12)


def test_linear_flow_whitens():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(20000, 4, generator=generator, dtype=torch.float64) @ mix + 3
    flow = LinearFlow.from_samples(x, shrink=0.0)
    z, _ = flow.encode(x)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(4, dtype=z.dtype), rtol=0, atol=1e-8)
    expected = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x[:5])
    z, log_det = flow.encode(x[:5])
    torch.testing.assert_close(normal_log_density(z) + log_det, expected)
    diagonal = LinearFlow.from_samples(x, shrink=1.0)
    torch.testing.assert_close(diagonal.encode(x)[0].square().mean(0), torch.ones(4, dtype=z.dtype), rtol=1e-3, atol=0)


def test_shrinking_keeps_the_backbone_stiff():
    # bonds between N, CA and C live in correlations of Cartesian features: without them, samples lose them
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 1, generator=generator, dtype=torch.float64).repeat(1, 4)
    x = x + 0.01 * torch.randn(500, 4, generator=generator, dtype=torch.float64)
    z = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    for kinds, cartesian_difference in ((torch.tensor([0, 0, 2, 3]), 0.02), (None, 0.9)):
        made, _ = LinearFlow.from_samples(x, 0.5, kinds).decode(z)
        differences = (made - made[:, :1]).std(0)
        assert differences[1].item() == pytest.approx(cartesian_difference, rel=0.3)
        assert differences[2:].min() > 0.9  # torsions lose half of theirs either way


def test_localised_covariance_keeps_bonds_and_has_full_rank():
    transform = MixedTransform.from_prepared(protein())
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(30, 3, generator=generator, dtype=torch.float64)  # three collective movements, thirty frames
    waves = torch.stack([torch.sin(transform.reference[:, axis] / 8 + axis) for axis in range(3)])
    sites = transform.reference + torch.einsum("fw,wa->fa", few, waves)[..., None]
    x = frame_features(transform, sites)
    kinds = transform.kinds
    cartesian = x[:, kinds == 0]
    covariance = torch.cov(cartesian.T)
    local = transform.localise(covariance, 20.0)
    assert torch.linalg.matrix_rank(local) > 2 * torch.linalg.matrix_rank(covariance)
    assert torch.linalg.eigvalsh(local).min() > -1e-10
    torch.testing.assert_close(transform.localise(covariance, 1e6), covariance)
    bonds = [
        (a.index, b.index)
        for a, b in protein().topology.bonds()
        if {a.index, b.index} <= set(transform.cart_index.tolist())
    ]
    i, j = torch.tensor(bonds).T
    deviations = []
    for used in (covariance, 0.7 * covariance + 0.3 * local):
        root = torch.linalg.cholesky(used + 1e-6 * torch.eye(len(used), dtype=used.dtype))
        y = torch.randn(200, len(used), generator=generator, dtype=used.dtype) @ root.T
        made, _ = transform.to_sites(torch.cat([y, x[:1, kinds != 0].repeat(200, 1)], -1))
        deviations.append((made[:, i] - made[:, j]).norm(dim=-1).std(0).mean())
        assert (made - transform.reference).norm(dim=-1)[:, transform.cart_index].mean() > 0.5
    assert deviations[1] < deviations[0] + 0.05  # 1.3 Å of movement, bonds of 1.5 Å
    with pytest.raises(ValueError, match="length"):
        transform.localise(covariance, 0.0)


def test_calibration_widens_what_has_not_been_seen():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    shrink, widen = calibrate(steps)  # independent frames: nothing to widen, no correlations to keep
    assert shrink == 0.6 and widen < 1.05
    walk = steps.cumsum(0)
    shrink, widen = calibrate(walk)
    assert widen > 1.2
    flow = LinearFlow.from_samples(walk[:800], shrink, widen=widen)
    assert flow.encode(walk[800:])[0].square().mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_generator_saves_and_loads(kind, transform, frames, tmp_path):
    generator = BoltzmannGenerator(transform, make_flow(kind, transform, frames))
    generator.save(tmp_path / "generator.pt")
    content = torch.load(tmp_path / "generator.pt", weights_only=True)  # no code in the file
    assert json.loads(content["description"])["flow"]["flow"] == kind
    loaded = BoltzmannGenerator.load(tmp_path / "generator.pt")
    z = torch.randn(3, generator.n_latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, other in zip(generator.decode(z), loaded.decode(z)):
        assert torch.equal(one, other)
    sites = turned(frames[:3].double())
    for one, other in zip(generator.encode(sites), loaded.encode(sites)):
        assert torch.equal(one, other)


def test_generator_does_not_care_where_a_structure_is(transform, frames):
    generator = BoltzmannGenerator(transform, make_flow("linear", transform, frames))
    sites = frames[::50].double()
    z, log_det = generator.encode(sites)
    z_turned, log_det_turned = generator.encode(turned(sites))
    torch.testing.assert_close(z_turned, z, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det_turned, log_det, rtol=0, atol=1e-8)
    back, log_det_back = generator.decode(z)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
    distances = torch.cdist(back, back) - torch.cdist(sites, sites)
    assert distances.abs().max() < 1e-3  # frames are single precision, bonds are set to their length
    torch.testing.assert_close(generator.log_prob(sites), normal_log_density(z) + log_det)
    mean = generator.sample(2, scale=0.0)
    torch.testing.assert_close(mean[0], mean[1])


def test_gradient_of_energy_and_density_in_latent_space(transform, frames):
    # what the Kullback-Leibler term of the training differentiates, for both energies
    generator = BoltzmannGenerator(transform, make_flow("realnvp", transform, frames))
    z = 0.3 * torch.randn(2, generator.n_latent, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameter = generator.flow.networks[-1][-1].bias
    for energy in (OpenMMEnergy(dipeptide_system(), "Reference"), TorchAmber(dipeptide_system())):

        def divergence(values):
            parameter.data.copy_(values)
            sites, log_det = generator.decode(z)
            return (energy(sites) / 2.494 - log_det).mean()

        start = parameter.detach().clone()
        (gradient,) = torch.autograd.grad(divergence(start), parameter)
        direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(3), dtype=start.dtype)
        with torch.no_grad():
            ahead, behind = divergence(start + 1e-6 * direction), divergence(start - 1e-6 * direction)
            parameter.data.copy_(start)
        slope = (gradient * direction).sum()
        assert ((ahead - behind) / 2e-6 - slope).abs() < 1e-4 * slope.abs()


@pytest.mark.parametrize("kind", ["realnvp", "spline"])
def test_likelihood_of_held_out_frames_improves(kind, transform):
    # what the base, a diagonal normal distribution, does not have: all features go together, a torsion has two wells
    generator = torch.Generator().manual_seed(0)
    x0 = transform.to_features(transform.reference)[0]
    common, noise = (torch.randn(400, n, generator=generator, dtype=torch.float64) for n in (1, len(x0)))
    x = x0 + 0.02 * common + 0.005 * noise
    x[:, -1] = 2 * torch.sign(common[:, 0]) + 0.1 * noise[:, -1]
    frames, _ = transform.to_sites(x)
    x = frame_features(transform, frames)
    if kind == "realnvp":
        flow = RealNVP(LinearFlow.from_samples(x, 1.0), n_blocks=2, hidden=16)
    else:
        pytest.importorskip("normflows")
        flow = SplineFlow.from_samples(x, transform.kinds, shrink=1.0, n_layers=2, hidden=16)
        assert flow.circular.tolist() == [transform.n_features - 1]
    _, held_out = split_in_time(x, 0.2)
    generator = BoltzmannGenerator(transform, flow)

    def likelihood():
        with torch.no_grad():
            z, log_det = flow.encode(held_out)
        return -(normal_log_density(z) + log_det).mean().item() / z.shape[-1]

    before = likelihood()
    history = train(generator, frames, TrainingSettings(steps=30, batch_size=64, learning_rate=3e-3, evaluate_every=10))
    best = min(row["nll_validation"] for row in history)
    assert best < before - 0.1
    assert likelihood() == pytest.approx(best, abs=1e-5)  # the best flow is kept, not the last


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_samples_of_a_trained_flow_keep_their_handedness(kind, transform, frames):
    generator = BoltzmannGenerator(transform, make_flow(kind, transform, frames, trained=False))
    if kind != "linear":
        train(generator, frames, TrainingSettings(steps=60, batch_size=64, evaluate_every=20))
    centres = chiral_centres(dipeptide())
    assert len(centres) == 1
    with torch.no_grad():
        made = generator.sample(1000, generator=torch.Generator().manual_seed(0))
    hand = handedness(dipeptide().sites_cart, centres)
    assert (handedness(made, centres) == hand).all() and (handedness(-made, centres) == -hand).all()


def test_energies_of_samples_come_down_and_the_start_becomes_typical(transform, frames):
    energy = OpenMMEnergy(dipeptide_system())
    linear = LinearFlow.from_samples(frame_features(transform, frames), 1.0)  # correlations are lost: bad samples
    generator = BoltzmannGenerator(transform, RealNVP(linear, n_blocks=2, hidden=32)).float()
    start = frames[-1]

    def median():
        with torch.no_grad():
            return energy(generator.sample(100, generator=torch.Generator().manual_seed(9)).double()).median().item()

    before = median()
    settings = TrainingSettings(
        steps=60,
        batch_size=64,
        w_ml=0.2,
        w_kl=1.0,
        w_star=0.1,
        e_high=(1e4, 100.0),
        learning_rate=3e-3,
        evaluate_every=20,
    )
    history = train(generator, frames, settings, energy=energy, start=start)
    of_md = energy(frames[::5]).median().item()
    after = median()
    assert after - of_md < 0.5 * (before - of_md) and (after - of_md) / 22 < 1.0
    assert history[0]["e_high"] > history[-1]["e_high"] == pytest.approx(100.0)
    assert history[-1]["step"] == 60 and {"kl", "star", "nll", "median_energy"} <= set(history[-1])
    assert abs(generator.encode(start)[0].square().mean().item() - 1) < 1


def test_interrupted_training_is_the_uninterrupted_one(transform, frames, tmp_path):
    # bit for bit: the CPU's arithmetic is the same each time with one thread
    class Interrupted(Exception):
        pass

    def fresh():
        x = frame_features(transform, frames)
        return BoltzmannGenerator(transform, RealNVP(LinearFlow.from_samples(x, 0.1), n_blocks=1, hidden=8, seed=4))

    def kill(row):
        if row["step"] == 10:
            raise Interrupted

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        energy = OpenMMEnergy(dipeptide_system(), "Reference")
        settings = TrainingSettings(steps=20, evaluate_every=5, batch_size=16, w_kl=0.5, n_samples=2, seed=7)
        whole, parts = fresh(), fresh()
        history = train(whole, frames, settings, energy=energy)
        with pytest.raises(Interrupted):
            train(parts, frames, settings, energy=energy, checkpoint=tmp_path / "c.pt", progress=kill)
        parts = fresh()
        resumed = train(parts, frames, settings, energy=energy, checkpoint=tmp_path / "c.pt")
    finally:
        torch.set_num_threads(threads)
    assert resumed == history
    for one, other in zip(whole.flow.state_dict().values(), parts.flow.state_dict().values()):
        assert torch.equal(one, other)
    torch.load(tmp_path / "c.pt", weights_only=True)
    with pytest.raises(ValueError, match="other settings"):
        train(fresh(), frames, TrainingSettings(steps=41), checkpoint=tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no checkpoint that can be read"):
        train(fresh(), frames, settings, energy=energy, checkpoint=tmp_path / "c.pt")


def test_validation_frames_are_the_last_ones():
    x = torch.arange(100.0)[:, None]
    training, held_out = split_in_time(x, 0.2)
    assert held_out[:, 0].tolist() == list(range(80, 100)) and training[:, 0].tolist() == list(range(78))
    with pytest.raises(ValueError, match="too few"):
        split_in_time(x[:2])


def test_samples_that_are_no_structures_are_left_out(transform, frames):
    def energy(sites):
        values = (sites**2).sum((-1, -2))
        return torch.where(torch.arange(len(values)) % 2 == 0, float("nan"), 1.0) * values

    generator = BoltzmannGenerator(transform, make_flow("realnvp", transform, frames))
    history = train(
        generator, frames, TrainingSettings(steps=2, w_kl=1.0, n_samples=4, evaluate_every=1), energy=energy
    )
    assert history[-1]["lost_samples"] == 4 and math.isfinite(history[-1]["loss"])
    assert all(torch.isfinite(p).all() for p in generator.flow.parameters())


def test_wrong_input(transform, frames, tmp_path):
    x = frame_features(transform, frames)
    linear = LinearFlow.from_samples(x)
    for samples, shrink, message in (
        (x, 1.5, "between 0 and 1"),
        (x[:1], 0.1, "at least two"),
        (x[:20], 0.0, "singular"),
        (x * math.nan, 0.1, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            LinearFlow.from_samples(samples, shrink)
    with pytest.raises(ValueError, match="features"):
        BoltzmannGenerator(MixedTransform.from_prepared(dipeptide()), linear)
    with pytest.raises(ValueError, match="nothing to train"):
        train(BoltzmannGenerator(transform, linear), frames, TrainingSettings())
    generator = BoltzmannGenerator(transform, RealNVP(linear, n_blocks=1, hidden=4))
    with pytest.raises(ValueError, match="w_kl needs an energy"):
        train(generator, frames, TrainingSettings(w_kl=1.0))
    with pytest.raises(ValueError, match="starting model"):
        train(generator, frames, TrainingSettings(w_star=1.0))
    for arguments in (dict(steps=0), dict(validation=1.0), dict(w_ml=0.0), dict(w_kl=-1.0), dict(e_high=(10.0, 20.0))):
        with pytest.raises(ValueError):
            TrainingSettings(**arguments)
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no Boltzmann generator"):
        BoltzmannGenerator.load(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no Boltzmann generator"):
        BoltzmannGenerator.load(tmp_path / "missing.pt")
