# %% [markdown]
# # A tensor that is no network
#
# When two catecholamines are oxidised, the products fluoresce, and how fast they come up tells
# the two apart. Nikolajsen, Booksh, Hansen and Bro (Analytica Chimica Acta 475, 2003) measured 64
# such reactions: at 12 wavelengths of emission, 10 of excitation and 60 instants. tensorly
# carries the data.
#
# A substance contributes its amount times its emission spectrum times its excitation spectrum
# times its course in time: a tensor of rank one. The data should therefore be a sum of few of
# them, and CP finds them without knowing a spectrum.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from tensorly.datasets import load_kinetic

import tensorlrf

plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False})

data = load_kinetic()
kept = np.setdiff1d(np.arange(64), data.outlier_measurements_idx)  # five measurements went wrong
tensor = torch.from_numpy(np.asarray(data.tensor))[kept]  # (59, 12, 10, 60)
missing = torch.from_numpy(np.asarray(data.missing_values_position))[kept]
print(f"{tuple(tensor.shape)}, {100 * missing.double().mean():.2f}% missing")

# %% [markdown]
# ## Entries that are missing
#
# They stand as zeros: single ones, and the last four minutes of one reaction. The
# least-squares fit to the others is found by filling them in: from a model, which is then fitted to
# the filled tensor from where it stood, and so on. `init=` takes the factors to begin with. Ranks
# go up meanwhile: a model with many components would begin by explaining the zeros.


# %%
def fitted(tensor, missing, rank, rounds=10):
    """CP factors of what is not missing, and their relative error there."""
    filled = tensor
    for k in range(1, rank + 1):
        factors = tensorlrf.cp(filled, k, random_state=0)
        filled = torch.where(missing, factors.to_dense(), tensor)
    for _ in range(rounds):
        factors = tensorlrf.cp(filled, rank, init=factors)
        filled = torch.where(missing, factors.to_dense(), tensor)
    rest = torch.where(missing, 0.0, tensor - factors.to_dense())
    return factors, float(rest.norm() / tensor.norm())


# %% [markdown]
# ## How many
#
# The error falls with every component, so it does not say when to stop. What is in the substances
# and not in the noise comes out of each half of the measurements alone: the spectra of two halves
# agree, component by component. The congruence of two components is the product of the cosines
# between their columns; 1 is the same.


# %%
def congruence(one, other, modes=(1, 2, 3)):
    """Of each component of one with the one of the other that is most like it, the least."""
    cosines = torch.ones(one.rank, other.rank, dtype=torch.float64)
    for k in modes:
        cosines *= (one.factors[k].T @ other.factors[k]).abs()
    return float(cosines.max(1).values.min())


order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(0))
halves = order[::2], order[1::2]
print("rank   error   agreement of halves")
for rank in range(1, 5):
    _, error = fitted(tensor, missing, rank)
    one, other = (fitted(tensor[half], missing[half], rank)[0] for half in halves)
    print(f"{rank:4d}   {error:.3f}   {congruence(one, other):.3f}")

# %% [markdown]
# ## What they are
#
# Three components come out of either half, a fourth does not. Columns have unit length, the
# weights tell the sizes, and a sign may move from one mode to another: here every spectrum is made
# to point up.

# %%
RANK = 3
factors, error = fitted(tensor, missing, RANK)
weights, columns = factors
columns = [u.clone() for u in columns]
for k in (1, 2, 3):
    sign = columns[k].sum(0).sign()
    columns[k] *= sign
    columns[0] *= sign

ticks = [kept + 1, *data.ticks[1:]]
fig, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
for axis, u, x, label in zip(axes, columns, ticks, data.ticks_labels, strict=True):
    for j in range(RANK):
        axis.plot(x, u[:, j], "." if label == "Measurements" else "-", label=f"component {j + 1}")
    axis.set_xlabel(label)
axes[0].set_ylabel("loading")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## What is left
#
# The residual, as a share of the data at each instant and each wavelength of emission: what the
# model does not see would show as a pattern.

# %%
rest = torch.where(missing, 0.0, tensor - factors.to_dense())
share = (rest.square().sum((0, 2)) / tensor.square().sum((0, 2))).sqrt()
fig, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
drawn = axis.pcolormesh(ticks[3], ticks[1], share, cmap="Greys", vmin=0)
fig.colorbar(drawn, label="residual / data")
axis.set_xlabel(data.ticks_labels[3])
axis.set_ylabel(data.ticks_labels[1])
plt.show()

# %%
print(f"relative error {error:.3f}, {tensor.numel():,} numbers in {factors.n_params:,}")
print(factors)
