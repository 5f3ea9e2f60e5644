"""The Boltzmann generator: structures from latent vectors and back, with densities."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...files.writing import write_atomically
from .coupling_flows import RealNVP, SplineFlow
from .flows import LinearFlow, normal_log_density
from .transform import MixedTransform, superpose

FLOWS: dict[str, Any] = {"linear": LinearFlow, "realnvp": RealNVP, "spline": SplineFlow}
_FORMAT = 1


class BoltzmannGenerator(nn.Module):
    """A flow on the features of a transform.

    Structures are compared without their place and orientation: :meth:`encode` superposes them on the
    transform's reference first, :meth:`decode` returns them in its frame.

    Parameters
    ----------
    transform : MixedTransform
    flow : torch.nn.Module
        :class:`LinearFlow` or another with its interface.

    Raises
    ------
    ValueError
        When their numbers of features differ.

    Examples
    --------
    >>> generator = BoltzmannGenerator(transform, LinearFlow.from_samples(x, 0.3, transform.kinds))
    >>> z, log_det = generator.encode(frames)
    >>> sites, _ = generator.decode(z)
    >>> z.shape == (len(frames), generator.n_latent), sites.shape, generator.log_prob(frames).shape
    (True, torch.Size([80, 22, 3]), torch.Size([80]))
    >>> generator.sample(3, scale=0.5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 22, 3])
    >>> generator.save("generator.pt")
    >>> bool(torch.equal(BoltzmannGenerator.load("generator.pt").decode(z)[0], sites))
    True
    """

    def __init__(self, transform: Any, flow: Any) -> None:
        super().__init__()
        if flow.n_latent != transform.n_features:
            raise ValueError(f"the flow has {flow.n_latent} features, the transform {transform.n_features}.")
        self.transform = transform
        self.flow = flow

    @property
    def n_latent(self) -> int:
        """Number of latent variables."""
        n: int = self.flow.n_latent
        return n

    def encode(self, sites_cart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent vectors of structures.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_ff, 3), Å, anywhere.

        Returns
        -------
        z : torch.Tensor
            (..., n_latent).
        log_det : torch.Tensor
            (...).
        """
        placed, _ = superpose(sites_cart, self.transform.reference, self.transform.cart_index)
        x, log_det = self.transform.to_features(placed)
        z, log_det_flow = self.flow.encode(x)
        return z, log_det + log_det_flow

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Structures of latent vectors.

        Parameters
        ----------
        z : torch.Tensor
            (..., n_latent).

        Returns
        -------
        sites_cart : torch.Tensor
            (..., n_ff, 3), Å, in the frame of the reference.
        log_det : torch.Tensor
            (...).
        """
        x, log_det = self.flow.decode(z)
        sites_cart, log_det_transform = self.transform.to_sites(x)
        return sites_cart, log_det + log_det_transform

    def log_prob(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Logarithm of the density of shapes, (...); volumes in the measure of :mod:`transform`, Å."""
        z, log_det = self.encode(sites_cart)
        return normal_log_density(z) + log_det

    def sample(self, n: int, scale: float = 1.0, generator: torch.Generator | None = None) -> torch.Tensor:
        """Structures of random latent vectors.

        Parameters
        ----------
        n : int
        scale : float
            Standard deviation of the latent vectors: below 1, structures are nearer to the mean.
        generator : torch.Generator, optional

        Returns
        -------
        torch.Tensor
            (n, n_ff, 3), Å.
        """
        reference = self.transform.reference
        where = reference.device if generator is None else generator.device
        z = torch.randn(n, self.n_latent, dtype=reference.dtype, device=where, generator=generator).to(reference)
        return self.decode(scale * z)[0]

    def save(self, path: str | Path) -> None:
        """Write a file of tensors and their description, which no code has to be trusted to read.

        Parameters
        ----------
        path : str or pathlib.Path
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = {"format": _FORMAT, "transform": self.transform.config(), "flow": self.flow.config()}
        buffer = io.BytesIO()
        torch.save(
            {
                "description": json.dumps(description),
                "transform": dict(self.transform.state_dict()),
                "flow": dict(self.flow.state_dict()),
            },
            buffer,
        )
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path, map_location: str | torch.device = "cpu") -> BoltzmannGenerator:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or pathlib.Path
        map_location : str or torch.device

        Returns
        -------
        BoltzmannGenerator

        Raises
        ------
        ValueError
            When the file is something else.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            description = json.loads(content["description"])
        except Exception as error:  # torch raises many kinds
            raise ValueError(f"{path} is no Boltzmann generator that can be read: {error}") from error
        if description.get("format") != _FORMAT:
            raise ValueError(f"{path} was written by another version: train it again.")
        flow = FLOWS[description["flow"]["flow"]]
        made = cls(
            MixedTransform.from_state(description["transform"], content["transform"]),
            flow.from_state(description["flow"], content["flow"]),
        )
        return made.to(map_location)
