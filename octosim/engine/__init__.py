"""Running networks: layers, their products in registers, optimizers, recorded steps, and what is seen of all that."""

from octosim.engine.network import Network
from octosim.engine.plan import trace

__all__ = ["Network", "trace"]
