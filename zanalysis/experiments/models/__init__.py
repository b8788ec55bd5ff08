"""Models of the experiments, each with width and depth as arguments.

`build(name, …)` builds one of `MODELS`; the builders can be
imported from here too. Names and globs of their layers (`HEAD`, `FIRST_LINEARS`, …) stand beside them, in
`zanalysis.experiments.models.vit` and so on.
"""

from zanalysis.experiments.models.blocks import Bias, Multiplier, PadShortcut, ResidualBlock
from zanalysis.experiments.models.building import MODELS, build
from zanalysis.experiments.models.cnn import cnn
from zanalysis.experiments.models.mixer import mixer
from zanalysis.experiments.models.mlp import Network, image_perceptron, mlp, perceptron
from zanalysis.experiments.models.resnet import deep_resnet, resnet
from zanalysis.experiments.models.transformer import transformer_lm
from zanalysis.experiments.models.vit import vit

__all__ = [
    "MODELS",
    "Bias",
    "Multiplier",
    "Network",
    "PadShortcut",
    "ResidualBlock",
    "build",
    "cnn",
    "deep_resnet",
    "image_perceptron",
    "mixer",
    "mlp",
    "perceptron",
    "resnet",
    "transformer_lm",
    "vit",
]
