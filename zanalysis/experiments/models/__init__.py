"""Models of the experiments, each with width and depth as arguments."""

from zanalysis.experiments.models.mlp import Network, perceptron

__all__ = ["Network", "perceptron"]
