"""Networks of torchvision, timm and MLPerf Tiny as graphs, for any number of classes.

Layers have the names of their definitions in PyTorch, where there is one.  Biases stand where the originals have them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from octosim.engine.graph import INPUT, Entry, Graph, InputSpec
from octosim.engine.layers import (
    GELU,
    Add,
    Attention,
    BatchNorm,
    ChannelShuffle,
    Concat,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    HardSwish,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Positions,
    ReLU,
    ReLU6,
    Reshape,
    Slice,
    Token,
)


class Net:
    """Layers, one behind the other unless inputs are named."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @property
    def last(self) -> str:
        return self.entries[-1].name if self.entries else INPUT

    def __call__(self, name: str, layer: Any, *inputs: str) -> str:
        self.entries.append(Entry(name, layer, inputs or (self.last,)))
        return name

    def conv(
        self, name: str, norm: str, filters: int, kernel: int = 1, stride: int = 1, act: tuple[str, Any] | None = None,
        depthwise: bool = False, eps: float = 1e-5, momentum: float = 0.1, source: str = "", bias: bool = False,
    ) -> str:  # fmt: skip
        """A convolution, batch normalization and, if it has one, an activation with its name."""
        fields: Any = {"kernel": kernel, "stride": stride, "pad": kernel // 2, "bias": bias}
        layer: Any = DepthwiseConv2d(**fields) if depthwise else Conv2d(filters, **fields)
        self(name, layer, *([source] if source else []))
        self(norm, BatchNorm(eps, momentum))
        return self(act[0], act[1]) if act else self.last

    def graph(self) -> Graph:
        return Graph(tuple(self.entries))


def resnet18(classes: int) -> Graph:
    """He et al. 2016, as torchvision has it: a stem of stride 4 for images of 224 x 224."""
    n = Net()
    n.conv("conv1", "bn1", 64, 7, 2, ("relu", ReLU()))
    x = n("maxpool", MaxPool(3, 2, 1))
    for stage, (filters, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), 1):
        for block in range(2):
            p, step = f"layer{stage}.{block}", stride if block == 0 else 1
            n.conv(f"{p}.conv1", f"{p}.bn1", filters, 3, step, (f"{p}.relu1", ReLU()), source=x)
            y = n.conv(f"{p}.conv2", f"{p}.bn2", filters, 3)
            if step != 1:
                x = n.conv(f"{p}.downsample.0", f"{p}.downsample.1", filters, 1, step, source=x)
            n(f"{p}.add", Add(), y, x)
            x = n(f"{p}.relu2", ReLU())
    n("avgpool", GlobalAvgPool())
    n("fc", Linear(classes))
    return n.graph()


def mobilenetv2(classes: int) -> Graph:
    """Sandler et al. 2018, as torchvision has it."""
    n = Net()
    x = n.conv("features.0.0", "features.0.1", 32, 3, 2, ("features.0.2", ReLU6()))
    width, at = 32, 1
    for expand, filters, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            p, step, source, i = f"features.{at}.conv", stride if block == 0 else 1, x, 0
            if expand != 1:
                n.conv(f"{p}.0.0", f"{p}.0.1", width * expand, act=(f"{p}.0.2", ReLU6()), source=x)
                i = 1
            n.conv(f"{p}.{i}.0", f"{p}.{i}.1", 0, 3, step, (f"{p}.{i}.2", ReLU6()), depthwise=True)
            x = n.conv(f"{p}.{i + 1}", f"{p}.{i + 2}", filters)
            if step == 1 and width == filters:
                x = n(f"features.{at}.add", Add(), x, source)
            width, at = filters, at + 1
    n.conv("features.18.0", "features.18.1", 1280, act=("features.18.2", ReLU6()))
    n("avgpool", GlobalAvgPool())
    n("classifier.0", Dropout(0.2))
    n("classifier.1", Linear(classes))
    return n.graph()


def _eighths(size: int) -> int:
    """The multiple of 8 that is nearest, and not more than a tenth below."""
    near = max(8, (size + 4) // 8 * 8)
    return near + 8 if near < 0.9 * size else near


def mobilenetv3_small(classes: int) -> Graph:
    """Howard et al. 2019, as torchvision has it."""
    n = Net()
    norm: Any = {"eps": 0.001, "momentum": 0.01}
    x = n.conv("features.0.0", "features.0.1", 16, 3, 2, ("features.0.2", HardSwish()), **norm)
    width = 16
    rows = (
        (3, 16, 16, True, "RE", 2), (3, 72, 24, False, "RE", 2), (3, 88, 24, False, "RE", 1), (5, 96, 40, True, "HS", 2),
        (5, 240, 40, True, "HS", 1), (5, 240, 40, True, "HS", 1), (5, 120, 48, True, "HS", 1), (5, 144, 48, True, "HS", 1),
        (5, 288, 96, True, "HS", 2), (5, 576, 96, True, "HS", 1), (5, 576, 96, True, "HS", 1),
    )  # fmt: skip
    for at, (kernel, wide, filters, excite, kind, stride) in enumerate(rows, 1):
        p, i, source = f"features.{at}.block", 0, x
        act: Any = HardSwish() if kind == "HS" else ReLU()
        if wide != width:
            n.conv(f"{p}.0.0", f"{p}.0.1", wide, act=(f"{p}.0.2", act), source=x, **norm)
            i = 1
        inside = n.conv(f"{p}.{i}.0", f"{p}.{i}.1", 0, kernel, stride, (f"{p}.{i}.2", act), depthwise=True, **norm)
        i += 1
        if excite:
            s = f"{p}.{i}"
            n(f"{s}.avgpool", GlobalAvgPool())
            n(f"{s}.fc1", Linear(_eighths(wide // 4)))
            n(f"{s}.activation", ReLU())
            n(f"{s}.fc2", Linear(wide))
            gate = n(f"{s}.scale_activation", HardSigmoid())
            n(f"{s}.multiply", Multiply(), inside, gate)
            i += 1
        x = n.conv(f"{p}.{i}.0", f"{p}.{i}.1", filters, **norm)
        if stride == 1 and width == filters:
            x = n(f"features.{at}.add", Add(), x, source)
        width = filters
    n.conv("features.12.0", "features.12.1", 576, act=("features.12.2", HardSwish()), **norm)
    n("avgpool", GlobalAvgPool())
    n("classifier.0", Linear(1024))
    n("classifier.1", HardSwish())
    n("classifier.2", Dropout(0.2))
    n("classifier.3", Linear(classes))
    return n.graph()


def squeezenet(classes: int) -> Graph:
    """SqueezeNet 1.1 (Iandola et al. 2016), as torchvision has it: the last convolution has a filter a class."""
    n = Net()
    n("features.0", Conv2d(64, 3, 2))
    n("features.1", ReLU())
    n("features.2", MaxPool(3, 2, ceil=True))

    def fire(at: int, squeeze: int, expand: int) -> None:
        p = f"features.{at}"
        n(f"{p}.squeeze", Conv2d(squeeze, 1))
        x = n(f"{p}.squeeze_activation", ReLU())
        n(f"{p}.expand1x1", Conv2d(expand, 1), x)
        a = n(f"{p}.expand1x1_activation", ReLU())
        n(f"{p}.expand3x3", Conv2d(expand, 3, 1, 1), x)
        b = n(f"{p}.expand3x3_activation", ReLU())
        n(f"{p}.concat", Concat(), a, b)

    fires = (3, 16, 64), (4, 16, 64), (6, 32, 128), (7, 32, 128), (9, 48, 192), (10, 48, 192), (11, 64, 256), (12, 64, 256)
    for at, squeeze, expand in fires:
        if at in (6, 9):
            n(f"features.{at - 1}", MaxPool(3, 2, ceil=True))
        fire(at, squeeze, expand)
    n("classifier.0", Dropout(0.5))
    n("classifier.1", Conv2d(classes, 1))
    n("classifier.2", ReLU())
    n("avgpool", GlobalAvgPool())
    return n.graph()


def shufflenetv2(classes: int) -> Graph:
    """ShuffleNet v2 1.0 (Ma et al. 2018), as torchvision has it."""
    n = Net()
    n.conv("conv1.0", "conv1.1", 24, 3, 2, ("conv1.2", ReLU()))
    x = n("maxpool", MaxPool(3, 2, 1))
    for stage, (filters, count) in enumerate(((116, 4), (232, 8), (464, 4)), 2):
        half = filters // 2
        for block in range(count):
            p, stride = f"stage{stage}.{block}", 2 if block == 0 else 1
            if stride == 2:
                n.conv(f"{p}.branch1.0", f"{p}.branch1.1", 0, 3, 2, depthwise=True, source=x)
                left = n.conv(f"{p}.branch1.2", f"{p}.branch1.3", half, act=(f"{p}.branch1.4", ReLU()))
                right = x
            else:
                left = n(f"{p}.left", Slice(0, half), x)
                right = n(f"{p}.right", Slice(half), x)
            n.conv(f"{p}.branch2.0", f"{p}.branch2.1", half, act=(f"{p}.branch2.2", ReLU()), source=right)
            n.conv(f"{p}.branch2.3", f"{p}.branch2.4", 0, 3, stride, depthwise=True)
            right = n.conv(f"{p}.branch2.5", f"{p}.branch2.6", half, act=(f"{p}.branch2.7", ReLU()))
            n(f"{p}.concat", Concat(), left, right)
            x = n(f"{p}.shuffle", ChannelShuffle(2))
    n.conv("conv5.0", "conv5.1", 1024, act=("conv5.2", ReLU()))
    n("avgpool", GlobalAvgPool())
    n("fc", Linear(classes))
    return n.graph()


def efficientnet_lite0(classes: int) -> Graph:
    """EfficientNet-Lite0 (Liu 2020), as timm has it: ReLU6, no squeeze-and-excite."""
    n = Net()
    x = n.conv("conv_stem", "bn1", 32, 3, 2, ("act1", ReLU6()))
    width = 32
    rows = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
            (6, 320, 1, 1, 3))  # fmt: skip
    for stage, (expand, filters, count, stride, kernel) in enumerate(rows):
        for block in range(count):
            p, step, source = f"blocks.{stage}.{block}", stride if block == 0 else 1, x
            if expand == 1:
                n.conv(f"{p}.conv_dw", f"{p}.bn1", 0, kernel, step, (f"{p}.act1", ReLU6()), depthwise=True)
                x = n.conv(f"{p}.conv_pw", f"{p}.bn2", filters)
            else:
                n.conv(f"{p}.conv_pw", f"{p}.bn1", width * expand, act=(f"{p}.act1", ReLU6()), source=x)
                n.conv(f"{p}.conv_dw", f"{p}.bn2", 0, kernel, step, (f"{p}.act2", ReLU6()), depthwise=True)
                x = n.conv(f"{p}.conv_pwl", f"{p}.bn3", filters)
            if step == 1 and width == filters:
                x = n(f"{p}.add", Add(), x, source)
            width = filters
    n.conv("conv_head", "bn2", 1280, act=("act2", ReLU6()))
    n("avgpool", GlobalAvgPool())
    n("dropout", Dropout(0.2))
    n("classifier", Linear(classes))
    return n.graph()


def vit_tiny(classes: int) -> Graph:
    """A vision transformer (Dosovitskiy et al. 2021) of DeiT-Ti's width and depth; patches of 4 x 4, for images of 32 x 32."""
    n = Net()
    width, heads = 192, 3
    n("patch_embed.proj", Conv2d(width, 4, 4))
    n("tokens", Reshape((-1, width)))
    n("cls_token", Token())
    x = n("pos_embed", Positions())
    for block in range(12):
        p = f"blocks.{block}"
        n(f"{p}.norm1", LayerNorm(1e-6), x)
        qkv = n(f"{p}.attn.qkv", Linear(3 * width))
        q, k, v = (n(f"{p}.attn.{name}", Slice(i * width, (i + 1) * width), qkv) for i, name in enumerate("qkv"))
        n(f"{p}.attn.heads", Attention(heads), q, k, v)
        y = n(f"{p}.attn.proj", Linear(width))
        x = n(f"{p}.add1", Add(), x, y)
        n(f"{p}.norm2", LayerNorm(1e-6))
        n(f"{p}.mlp.fc1", Linear(4 * width))
        n(f"{p}.mlp.act", GELU())
        y = n(f"{p}.mlp.fc2", Linear(width))
        x = n(f"{p}.add2", Add(), x, y)
    n("norm", LayerNorm(1e-6))
    n("token", Slice(0, 1, 0))
    n("flatten", Flatten())
    n("head", Linear(classes))
    return n.graph()


# ---- MLPerf Tiny (Banbury et al. 2021) --------------------------------------------------


def resnet8(classes: int) -> Graph:
    """Image classification: three blocks of 16, 32 and 64 filters."""
    n = Net()
    x = n.conv("conv1", "bn1", 16, 3, act=("relu1", ReLU()), bias=True)
    for stage, (filters, stride) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
        p = f"block{stage}"
        n.conv(f"{p}.conv1", f"{p}.bn1", filters, 3, stride, (f"{p}.relu1", ReLU()), source=x, bias=True)
        y = n.conv(f"{p}.conv2", f"{p}.bn2", filters, 3, bias=True)
        if stride != 1:
            x = n(f"{p}.shortcut", Conv2d(filters, 1, stride), x)
        n(f"{p}.add", Add(), y, x)
        x = n(f"{p}.relu2", ReLU())
    n("avgpool", GlobalAvgPool())
    n("fc", Linear(classes))
    return n.graph()


def ds_cnn(classes: int) -> Graph:
    """Keyword spotting, for 49 x 10 spectrograms: four depthwise separable blocks of 64 filters."""
    n = Net()
    n("conv1", Conv2d(64, (10, 4), 2, (4, 1, 5, 1)))
    n("bn1", BatchNorm())
    n("relu1", ReLU())
    n("dropout1", Dropout(0.2))
    for block in range(1, 5):
        p = f"block{block}"
        n.conv(f"{p}.dw", f"{p}.bn1", 0, 3, act=(f"{p}.relu1", ReLU()), depthwise=True, bias=True)
        n.conv(f"{p}.pw", f"{p}.bn2", 64, act=(f"{p}.relu2", ReLU()), bias=True)
    n("dropout2", Dropout(0.4))
    n("avgpool", GlobalAvgPool())
    n("fc", Linear(classes))
    return n.graph()


def mobilenet_quarter(classes: int) -> Graph:
    """Visual wake words, for 96 x 96: MobileNet v1 of width 0.25."""
    n = Net()
    n.conv("conv1", "bn1", 8, 3, 2, ("relu1", ReLU()), bias=True)
    rows = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))
    for block, (filters, stride) in enumerate(rows, 1):
        p = f"block{block}"
        n.conv(f"{p}.dw", f"{p}.bn1", 0, 3, stride, (f"{p}.relu1", ReLU()), depthwise=True, bias=True)
        n.conv(f"{p}.pw", f"{p}.bn2", filters, act=(f"{p}.relu2", ReLU()), bias=True)
    n("avgpool", GlobalAvgPool())
    n("fc", Linear(classes))
    return n.graph()


def autoencoder(classes: int) -> Graph:
    """Anomaly detection, for vectors of 640 numbers: four layers of 128 units on each side of a bottleneck of 8, and back."""
    n = Net()
    n("flatten", Flatten())
    for at, units in enumerate((128, 128, 128, 128, 8, 128, 128, 128, 128), 1):
        n(f"fc{at}", Linear(units))
        n(f"bn{at}", BatchNorm())
        n(f"relu{at}", ReLU())
    n("output", Linear())
    return replace(n.graph(), input=InputSpec((640,)), loss="mse")


NETWORKS: dict[str, Callable[[int], Graph]] = {
    "resnet18": resnet18,
    "mobilenetv2": mobilenetv2,
    "mobilenetv3-small": mobilenetv3_small,
    "squeezenet1.1": squeezenet,
    "shufflenetv2": shufflenetv2,
    "efficientnet-lite0": efficientnet_lite0,
    "vit-tiny": vit_tiny,
    "resnet8": resnet8,
    "ds-cnn": ds_cnn,
    "mobilenetv1-0.25": mobilenet_quarter,
    "autoencoder": autoencoder,
}
