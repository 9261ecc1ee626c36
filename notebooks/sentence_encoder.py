# %% [markdown]
# # A sentence encoder
#
# all-MiniLM-L6-v2 turns a text into 384 numbers, so that texts of like meaning lie together. Here
# it runs on six tenths of the parameters of its layers, calibrated on 300 news documents (no
# labels), and is judged on 50 others: does it put them in the same places, and does a search find
# the same ones? The packages with the model and the texts are those of
# `requirements-examples.txt`.

# %%
import sys

import matplotlib.pyplot as plt
import torch

import tensorlrf

sys.path.insert(0, "../examples")
from minilm import (
    SKIP,
    calibration_batches,
    embed,
    load_minilm,
    load_tokenizer,
    readout,
)
from texts import documents, human_similarities, pearson

plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False})

model, tokenizer = load_minilm(), load_tokenizer()
batches = calibration_batches(tokenizer)
texts = documents()
print(f"{len(batches)} batches to calibrate with, {len(texts)} documents to judge by")

# %% [markdown]
# ## Smaller
#
# What counts is the direction of the mean over the tokens: `readout=` and `loss=` say so, and
# ranks are shared out by what that loses. `skip=` leaves the embeddings.

# %%
small, report = tensorlrf.compress(
    model,
    keep_params=0.6,
    calibration=batches,
    skip=SKIP,
    loss="cosine",
    readout=readout,
    progress=False,
)
print(report)

# %% [markdown]
# ## The same places?
#
# The cosine between what the two models give for each of the documents, none of which calibrated.

# %%
before, after = embed(model, tokenizer, texts), embed(small, tokenizer, texts)
cosines = (before * after).sum(1)  # rows have length 1
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.hist(cosines, bins=20, color="grey")
axis.set_xlabel("cosine to the given model's embedding")
axis.set_ylabel("documents")
plt.show()
print(f"mean {float(cosines.mean()):.3f}, least {float(cosines.min()):.3f}")

# %% [markdown]
# ## The same neighbours?
#
# Each document asks for the one that is most like it. People were asked too how alike each pair
# is (Lee, Pincombe and Welsh, 2005).


# %%
def nearest(rows):
    likeness = rows @ rows.T
    return likeness.fill_diagonal_(-1).argmax(1)


same = nearest(before) == nearest(after)
print(f"{int(same.sum())} of {len(texts)} find the same one")
judged = human_similarities()
for name, rows in {"given model": before, "on factors": after}.items():
    print(f"{name}: correlation with what people said {pearson(rows.numpy(), judged):.3f}")

off = ~torch.eye(len(texts), dtype=torch.bool)
fig, axis = plt.subplots(figsize=(3.4, 3.2), layout="constrained")
axis.plot((before @ before.T)[off], (after @ after.T)[off], ".", markersize=2, color="black")
axis.set_xlabel("likeness of two documents, given model")
axis.set_ylabel("on factors")
plt.show()
