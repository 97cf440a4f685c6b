"""PyTorch modules whose matrix products run in octosim's core, on the CPU, to the bit.

    >>> import torch, octosim.torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    >>> net = octosim.torch.convert(net, method="octo", accumulator="acc16")
    >>> loss = torch.nn.functional.cross_entropy(net(torch.rand(2, 3, 8, 8)), torch.tensor([0, 1]))
    >>> loss.backward()
    >>> list(octosim.torch.report(net)["pass"])
    ['forward', 'dW', 'forward', 'dX', 'dW']

`convert` replaces convolutions (1-D and 2-D; grouped, dilated, of any stride), linear layers, multi-head attention with its two
batched products, and batch normalization and global pooling, so that a network's values are those of octosim's own engine.
What is converted keeps its parameters' names, and trains with any optimizer of PyTorch; a method's own parameters (Octo's
compensation) are more parameters, and its running ranges buffers, which a state_dict of the original may lack.
"""

from octosim.errors import OctosimError

try:
    import torch  # noqa: F401 - told here if it is missing
except ImportError:
    raise OctosimError("octosim.torch needs PyTorch: pip install 'octosim[torch]'") from None

from octosim.torch.attention import Attention, scaled_dot_product_attention
from octosim.torch.conversion import convert, observing, report, reset
from octosim.torch.modules import cross_entropy
from octosim.torch.products import Session

__all__ = ["Attention", "Session", "convert", "cross_entropy", "observing", "report", "reset", "scaled_dot_product_attention"]
