"""What only newer versions of torch can."""

import torch

import pytest

VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
#: Dynamo of torch 2.5 and 2.6 does not follow dataclasses and context managers through a whole FModel; 2.7 and 2.8 were not tried.
FROM = (2, 9)
of_whole_graphs = pytest.mark.skipif(
    VERSION < FROM, reason=f"torch.compile(fullgraph=True) of an FModel is known from torch {FROM[0]}.{FROM[1]} on"
)
#: Some arrays of torch 2.5 and 2.6 lie in another order, and the kernels that meet them are compiled when they do.
of_known_layouts = pytest.mark.skipif(
    VERSION < FROM, reason=f"what kernels are called with is listed for torch from {FROM[0]}.{FROM[1]} on"
)
