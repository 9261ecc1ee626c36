# %% [markdown]
# # A CNN of your own
#
# A small network reads digits. It is trained here, then runs on a quarter of its parameters, and is
# saved and loaded. The pictures are drawn from the fonts that matplotlib carries, turned, shifted
# and noisy; those it is judged by are in fonts that it has not seen. The network and the pictures
# are those of `examples/own_cnn.py`.

# %%
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import tensorlrf

sys.path.insert(0, "../examples")
from own_cnn import Net, accuracy, digits, train

plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False})

x, y = digits("train", 2000)
unseen, truth = digits("test", 500)
net = train(x, y)
print(f"{accuracy(net, unseen, truth):.3f} right on unseen fonts")

# %%
fig, axes = plt.subplots(1, 10, figsize=(10, 1.3), layout="constrained")
for axis, picture, digit in zip(axes, unseen, truth, strict=False):
    axis.imshow(picture[0], cmap="gray")
    axis.set_title(int(digit))
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Smaller
#
# `keep_params` is what is kept, an upper bound. With some inputs (no labels) ranks go where the
# network needs them, and each layer is fitted to what it gives on these inputs. The report says
# what became of each layer.

# %%
batches = x[:512].split(64)
small, report = tensorlrf.compress(net, keep_params=0.25, calibration=batches)
print(report)

# %% [markdown]
# ## What the data is worth
#
# The same sizes without inputs, by the weights alone, and with them. No step of training is made
# in either.

# %%
shares = (0.5, 0.35, 0.25, 0.15)
by_data, by_weights = [], []
for keep in shares:
    with_data, _ = tensorlrf.compress(net, keep_params=keep, calibration=batches)
    without, _ = tensorlrf.compress(net, keep_params=keep)
    by_data.append(accuracy(with_data, unseen, truth))
    by_weights.append(accuracy(without, unseen, truth))

fig, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.axhline(accuracy(net, unseen, truth), color="grey", linewidth=0.8, label="given network")
axis.plot(shares, by_data, "o-", label="fitted to inputs")
axis.plot(shares, by_weights, "o--", label="weights alone")
axis.set_xlabel("parameters kept")
axis.set_ylabel("right on unseen fonts")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Saved and loaded
#
# The file has the factors and the plan; loading puts them into your own architecture, which needs
# no weights.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "small.safetensors"
    tensorlrf.save(small, path)
    with torch.device("meta"):
        empty = Net()
    again = tensorlrf.load(path, empty).eval()
    whole = sum(p.numel() * p.itemsize for p in net.parameters())
    print(
        f"{path.stat().st_size / 1e3:.0f} kB on the disk, {whole / 1e3:.0f} kB of parameters before"
    )
print(f"{accuracy(again, unseen, truth):.3f} right on unseen fonts")
print(again)
