"""Every initialization of the two seeds, of tensors and of any `nn.Module`: the names of this package.

On a tensor they work as `torch.nn.init` does: they fill it in place and return it. On a module they set every
parameter that they know, name those they do not, and return a `Report` that also says what they assumed.
"""

from zanalysis.initializers.byname import INITIALIZATIONS, initialize
from zanalysis.initializers.identities import gi_, hadamard_, partial_identity_, perturbed_identity_
from zanalysis.initializers.matrices import Normalization, hadamard
from zanalysis.initializers.report import Entry, Report
from zanalysis.initializers.residual import constnet_, fixup_, rezero_, skipinit_
from zanalysis.initializers.standard import kaiming_, xavier_
from zanalysis.initializers.zero import zero_
from zanalysis.initializers.zeros import all_constant_, all_zero_, zeros_

__all__ = [
    "INITIALIZATIONS",
    "Entry",
    "Normalization",
    "Report",
    "all_constant_",
    "all_zero_",
    "constnet_",
    "fixup_",
    "gi_",
    "hadamard",
    "hadamard_",
    "initialize",
    "kaiming_",
    "partial_identity_",
    "perturbed_identity_",
    "rezero_",
    "skipinit_",
    "xavier_",
    "zero_",
    "zeros_",
]
