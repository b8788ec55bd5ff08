"""What the tests of experiments share: jobs at smoke scale, and what a training left."""

from dataclasses import replace

import torch
from safetensors.torch import load_file

from zanalysis.experiments.data import load
from zanalysis.experiments.jobs import Job, Variant, protocol_of
from zanalysis.experiments.preparing import isolated, prepared
from zanalysis.experiments.recipes import find


def job_of(name, label, at=None, seed=0, scale="smoke", **changes):
    """A training of a recipe, with changes to its protocol."""
    recipe = find(name)
    protocol = replace(recipe.scales[scale], **changes)
    system = next(system for system in recipe.systems if system.label == label)
    variant = Variant(system, at)
    data = load(protocol.data)
    data = data.subset(train=protocol.train, test=protocol.test)
    own = protocol_of(recipe, protocol, variant)
    return Job(recipe.name, scale, variant, own, data, seed, recipe.metric, after=recipe.after)


def network_of(job):
    """The network of a training before its first step."""
    with isolated(job):
        return prepared(job)


def same_weights(one, other):
    """Whether two files of weights hold the same bits."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
