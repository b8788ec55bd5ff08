"""The parts of Theorem 1 that need no training: computed anew at every verification."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from zanalysis.analyzers.spectrum import rank
from zanalysis.initializers import hadamard, hadamard_, perturbed_identity_
from zanalysis.verify.verdict import Verdict

__all__ = ["lemma_1", "lemma_2", "linear_control", "perturbed_identities", "static_span"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed_identities(
    n_h: int, sigmas: Sequence[float] = (1e-4, 1e-2, 1.0), seeds: Sequence[int] = (0, 1, 2)
) -> Verdict:
    """Check claim (i): a randomly perturbed identity has a residual of full rank.

    In float64, whose tolerance lies far below the smallest singular value of a Gaussian matrix,
    about σ/√n.

    Args:
        n_h: size of the square matrices.
        sigmas: standard deviations of the perturbation.
        seeds: of the perturbation.

    Returns:
        The verdict; its evidence has a row for each σ and seed.
    """
    rows = []
    for sigma in sigmas:
        for seed in seeds:
            weight = perturbed_identity_(torch.empty(n_h, n_h, dtype=torch.float64), sigma, _generator(seed))
            found = rank(weight, reference=torch.eye(n_h, dtype=torch.float64))
            rows.append({"sigma": sigma, "seed": seed, "rank": float(found)})
    evidence = pd.DataFrame(rows)
    least = float(evidence["rank"].min())
    return Verdict(
        "(i)",
        "holds" if least == n_h else "violated",
        n_h,
        least,
        f"the residual of I + μ, μ_ij ~ N(0, σ²), has rank {least:.0f} or more of {n_h} for "
        f"σ in {list(sigmas)} and {len(seeds)} seeds each (float64)",
        evidence,
    )


def lemma_1(seeds: Sequence[int] = (0, 1, 2)) -> Verdict:
    """Check Lemma 1: a sum of outer products has at most the rank of either family's span.

    On whole numbers small enough for float64 to be exact.

    Args:
        seeds: of the random families.

    Returns:
        The verdict; measured and bound are of the case with the largest measured rank.
    """
    rows = []
    for seed in seeds:
        generator = _generator(seed)

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randint(-3, 4, shape, generator=generator).double()

        for u, v in ((1, 5), (3, 3), (6, 2), (5, 4)):
            a, b = draw(40, u) @ draw(u, 12), draw(40, v) @ draw(v, 9)
            bound = min(float(rank(a)), float(rank(b)))
            rows.append(
                {
                    "seed": seed,
                    "U": rank(a).item(),
                    "V": rank(b).item(),
                    "bound": bound,
                    "rank": rank(a.T @ b).item(),
                }
            )
    evidence = pd.DataFrame(rows)
    worst = evidence.iloc[int((evidence["rank"] - evidence["bound"]).to_numpy().argmax())]
    fine = bool((evidence["rank"] <= evidence["bound"]).all())
    return Verdict(
        "Lemma 1",
        "holds" if fine else "violated",
        float(worst["bound"]),
        float(worst["rank"]),
        f"rank(Σ a ⊗ b) ≤ min(dim span a, dim span b) in {len(evidence)} sums of 40 outer products of whole numbers",
        evidence,
    )


def lemma_2() -> Verdict:
    """Check Lemma 2: with N_h = 4 and N_x = 3, ReLU(H I* x) spans 4 dimensions.

    The conclusion is checked on the images of e₂, e₃, −e₂, −e₃ and e₂ + e₃, all in span(e₂, e₃). The
    paper derives it from the linear independence of the first four images, which is a part of its own.

    Returns:
        The verdict.
    """
    h = hadamard(2, dtype=torch.float64)[:, :3]
    e2, e3 = torch.eye(3, dtype=torch.float64)[1:]
    inputs = torch.stack((e2, -e2, e3, -e3, e2 + e3))
    images = torch.relu(inputs @ h.T)
    found, named = float(rank(images)), float(rank(images[:4]))
    evidence = pd.DataFrame(images.numpy(), index=["e2", "-e2", "e3", "-e3", "e2+e3"])
    equation_6 = Verdict(
        "Lemma 2, equation 6",
        "holds" if named == 4 else "violated",
        4,
        named,
        f"the four vectors ReLU(±H I* e₂), ReLU(±H I* e₃) span {named:.0f} dimensions: both pairs add up to "
        "(1, 1, 1, 1), so they are not independent as the paper's lemma says",
        evidence.iloc[:4],
    )
    return Verdict(
        "Lemma 2",
        "holds" if found == 4 else "violated",
        4,
        found,
        f"ReLU(H I* x), x in span(e₂, e₃), spans {found:.0f} dimensions with N_h = 4, N_x = 3. The four vectors "
        f"that the paper names span only {named:.0f} (both pairs add up to (1, 1, 1, 1)); x = e₂ + e₃ adds the rest",
        evidence,
        (equation_6,),
    )


def static_span(n_x: int, n_h: int, samples: int | None = None) -> Verdict:
    """Check claim (iii) at initialization: ReLU(H I* x) spans more than N_x dimensions.

    Args:
        n_x: input dimension.
        n_h: hidden dimension, more than n_x.
        samples: how many Gaussian inputs; 2 n_h if None.

    Returns:
        The verdict.
    """
    weight = hadamard_(torch.empty(n_h, n_x, dtype=torch.float64))
    inputs = torch.randn(samples or 2 * n_h, n_x, generator=_generator(0), dtype=torch.float64)
    found = float(rank(torch.relu(inputs @ weight.T), tolerance="numpy"))
    return Verdict(
        "(iii)",
        "holds" if found > n_x else "violated",
        n_x,
        found,
        f"at initialization ReLU(H I* x) spans {found:.0f} dimensions over {len(inputs)} Gaussian inputs "
        f"with N_x = {n_x}, N_h = {n_h} (float64)",
    )


def linear_control(n_x: int = 24, n_h: int = 64, depth: int = 3) -> Verdict:
    """Check the negative control: without a nonlinearity no initialization spans more than N_x.

    Args:
        n_x: input dimension.
        n_h: hidden dimension.
        depth: how many linear maps follow each other.

    Returns:
        The verdict; the bound is N_x.
    """
    rows = []
    for start in ("hadamard", "random"):
        generator = _generator(0)
        z = torch.randn(4 * n_h, n_x, generator=generator, dtype=torch.float64)
        for layer in range(1, depth + 1):
            weight = torch.empty(n_h, z.shape[1], dtype=torch.float64)
            if start == "hadamard":
                hadamard_(weight)
            else:
                weight.normal_(0, n_h**-0.5, generator=generator)
            z = z @ weight.T
            rows.append({"initialization": start, "layer": layer, "span": rank(z, tolerance="numpy").item()})
    evidence = pd.DataFrame(rows)
    widest = float(evidence["span"].max())
    return Verdict(
        "linear control",
        "holds" if widest <= n_x else "violated",
        n_x,
        widest,
        f"in a linear network the activations span {widest:.0f} dimensions, N_x = {n_x}, N_h = {n_h}, "
        "under Hadamard and random weights alike: the nonlinearity is what breaks the bound",
        evidence,
    )
