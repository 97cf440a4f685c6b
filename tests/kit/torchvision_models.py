"""torchvision's and timm's definitions of networks, where they can be imported."""

from __future__ import annotations

from typing import Any

import pytest


def torchvision() -> Any:
    """torchvision.  Its own operators, which no definition needs, may be of another build of torch: the schemas that it looks
    for at import are declared here then."""
    import torch

    try:
        import torchvision
    except ImportError:
        pytest.skip("needs torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # lives as long as the process
        torchvision = pytest.importorskip("torchvision")
    return torchvision


def modules() -> tuple[Any, Any]:
    """torchvision.models and timm."""
    return torchvision().models, pytest.importorskip("timm")
